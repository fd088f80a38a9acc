"""Releases that someone made who wants to keep a verifier busy, fill its memory, or get words past it.

Run as a script with the folder of a finished run: verifies each in this one process, and prints as JSON what was said,
how long the processor was at it, and by how much memory grew.
"""

import contextlib
import copy
import io
import json
import math
import os
import resource
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import safetensors.torch
import tomli_w
import torch

from dpdm.config import decode_plan
from dpdm.diffusion import GaussianMixture
from dpdm.files import json_text
from dpdm.methods.prior import PRIOR_SUMS
from dpdm.privacy import OperatingSystemEntropy
from dpdm.runs.public import claim_of
from dpdm.runs.release import FILES, SCHEMA, digest
from dpdm.runs.weights import head_of as header
from dpdm.runs.weights import layout_of, save_weights

PRIOR = "denoiser.preconditioning.prior."
MIXTURE = "mixture."  # in the release of a prior alone


def digested(release, **claim):
    """Write the claim for the files as they lie there now."""
    whole = json.loads((release / "privacy.json").read_text()) | claim
    whole["sha256"] = {name: digest(release / name) for name in FILES}
    (release / "privacy.json").write_text(json_text(whole))


def as_text(change, name="config.toml"):
    """A forgery of a file's text."""

    def forge(release):
        path = release / name
        text = change(path.read_text())
        assert text != path.read_text()
        path.write_text(text)
        if name == "config.toml":
            digested(release)

    return forge


def replaced(old, new, name="config.toml"):
    return as_text(lambda text: text.replace(old, new, 1), name)


def settings(**values):
    """A forgery of settings by their dotted keys, with a claim that follows from them where one does."""

    def forge(release):
        path = release / "config.toml"
        table = tomllib.loads(path.read_text())
        for key, value in values.items():
            *parents, last = key.split("__")
            inner = table
            for parent in parents:
                inner = inner[parent]
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        path.write_bytes(tomli_w.dumps(table).encode())
        digested(release)

    return forge


def plan(**values):
    """A forgery of the plan, or of its steps, with the claim that follows from it where one does."""

    def forge(release):
        path = release / "config.toml"
        table = tomllib.loads(path.read_text())
        whole, steps = table["plan"], table["plan"]["releases"][-1]
        for key, value in values.items():
            (steps if key in steps else whole)[key] = value
        assert table != tomllib.loads(path.read_text())
        path.write_bytes(tomli_w.dumps(table).encode())
        claim = {}
        with contextlib.suppress(Exception):
            claim = decode_plan(whole).claim(entropy=OperatingSystemEntropy())
        digested(release, **claim)

    return forge


def sums(change):
    """A forgery of the plan's list of sums, with the claim that follows from it where one does."""

    def forge(release):
        entries = tomllib.loads((release / "config.toml").read_text())["plan"]["releases"]
        plan(releases=change(entries))(release)

    return forge


def claim(change):
    """A forgery of the claim alone."""

    def forge(release):
        path = release / "privacy.json"
        path.write_text(json_text(change(json.loads(path.read_text()))))

    return forge


def weights(change):
    """A forgery of the weights, in the one file of their numbers."""

    def forge(release):
        path = release / "model.safetensors"
        save_weights(path, change(safetensors.torch.load_file(path)))
        digested(release)

    return forge


def prior(name, make):
    return weights(lambda tensors: tensors | {f"{PRIOR}{name}": make(tensors[f"{PRIOR}{name}"])})


def head(text, size=None):
    """A forgery of what stands before the weights."""

    def forge(release):
        with (release / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            if size:
                file.truncate(size)
        claim = json.loads((release / "privacy.json").read_text())
        (release / "privacy.json").write_text(json_text(claim))

    return forge


def tensor(shape, end):
    """A forgery of the weights that is one tensor of a strange shape."""
    text = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}'
    return head((text + " " * (-len(text) % 8)).encode(), 8 + len(text) + -len(text) % 8 + end)


def sparse(name, size):
    return lambda release: os.truncate(release / name, size)


def instead(name, make):
    """Something else where a file should be."""

    def forge(release):
        (release / name).unlink()
        make(release / name)

    return forge


def words(text):
    """Words in all places for words."""
    return {
        f"{what} {len(text)} {ascii(text)[:12]}": forge
        for what, forge in {
            "a data set's name": settings(facts__name=text),
            "a class's name": settings(facts__class_names=["ant", text, "cat"]),
            "a sampler's name": settings(samplers={text: {"kind": "ddim", "steps": 3}}),
        }.items()
    }


def one_more(count):
    return {f"s{number}": {"kind": "ddim", "steps": 3} for number in range(count)}


def reordered(table):
    return dict(sorted(table.items()))


def images(tensor):
    """Images where orthonormal directions should be."""
    return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype) * 2 - 1


def unet(**values):
    return settings(network={"kind": "unet", "width": 4, "multipliers": [1], "blocks": 1, "attention": []} | values)


def zeros(shape, kept):
    """A forgery that is a prior alone, of directions that take no place on a disk, and are zero."""

    def forge(release):
        table = tomllib.loads((release / "config.toml").read_text())
        table["facts"] |= {"shape": shape, "class_names": []}
        names = PRIOR_SUMS
        table["plan"]["releases"] = [{"kind": "full", "name": name, "noise_multiplier": 20.0} for name in names]
        table = {"method": "prior"} | {key: table[key] for key in ("seed", "facts", "plan", "prior")}
        table["prior"]["centres"] = 1
        (release / "config.toml").write_bytes(tomli_w.dumps(table).encode())
        with torch.device("meta"):
            sizes = {"kept": kept, "lead": kept, "centres": 1}
            mixture = GaussianMixture.placeholder(math.prod(shape), num_classes=0, **sizes)
            layout = {f"{MIXTURE}{name}": entry for name, entry in layout_of(mixture.state_dict()).items()}
        begin = header(layout)
        with (release / "model.safetensors").open("wb") as file:
            file.write(begin)
            file.truncate(len(begin) + sum(t.itemsize * math.prod(sides) for t, sides in layout.values()))
        claimed = claim_of(decode_plan(table["plan"]), (), entropy=OperatingSystemEntropy())
        (release / "privacy.json").write_text(json_text({"schema": SCHEMA, **claimed, "sha256": {}}))
        digested(release)

    return forge


HUGE = 10**12
DIGITS = "9" * 399
HOSTILE = {
    # numbers without end
    "steps without end": plan(count=HUGE, noise_multiplier=1e6),
    "many steps": plan(count=10**6 + 1, noise_multiplier=1e4),
    "no noise": plan(noise_multiplier=1e-300),
    "noise beyond numbers": plan(noise_multiplier=1e300),
    "a delta of nothing": plan(delta=1e-320),
    "records without end": plan(dataset_size=10**400),
    "a batch without end": plan(expected_batch_size=10**300, dataset_size=10**301),
    "rounds without end": settings(prior__rounds=10**9, prior__centres=2),
    "centres without end": settings(prior__centres=10**9),
    "many centres": settings(prior__centres=1000),
    "a wide network": settings(network__width=8000),
    "a network without end": settings(network__width=HUGE),
    "blocks without end": settings(network__blocks=HUGE),
    "a patch without end": settings(network={"kind": "compact-unet", "width": 16, "blocks": 1, "patch": HUGE}),
    "many levels": unet(multipliers=[1] * 10_000),
    "much attention": unet(attention=[8] * 10_000),
    "the largest network": unet(width=8192, multipliers=[8] * 8, blocks=32),
    "a sampler without end": settings(sampler__steps=HUGE),
    "samplers without end": settings(samplers=one_more(2000)),
    "17 samplers": settings(samplers=one_more(17)),
    "classes without end": settings(facts__class_names=[str(number) for number in range(10**6)]),
    "10,001 classes": settings(facts__class_names=[str(number) for number in range(10_001)]),
    "images without end": settings(facts__shape=[10**9, 8, 8]),
    "large images": settings(facts__shape=[3, 4096, 4096]),
    "an image of two sides": settings(facts__shape=[8, 8]),
    "an image of no side": settings(facts__shape=[3, 0, 8]),
    "5,000 digits": replaced("count = 6", f"count = {'6' * 5000}"),
    "4,000 digits": replaced("count = 6", f"count = {'6' * 4000}"),
    "a number of 400 digits below zero": replaced("seed = 0", f"seed = -{'6' * 399}"),
    "nested lists": replaced("count = 6", f"count = 6\nmore = {'[' * 100_000}"),
    "nested tables": replaced("count = 6", f"count = 6\n{'a.' * 100_000}a = 1"),
    "nested heads": replaced("[network]", f"[{'a.' * 100_000}a]\n[network]"),
    "nested tables in lines": as_text(
        lambda text: text + "\n".join(f"k{i}." + "a." * 500 + "a = 1" for i in range(999))
    ),
    "keys without end": as_text(lambda text: text + "".join(f"k{number} = 1\n" for number in range(300_000))),
    "tables without end": as_text(lambda text: text + "".join(f"[t{number}]\n" for number in range(300_000))),
    "one long string": replaced('name = "photos"', f'name = "{"a" * 3_000_000}"'),
    "large settings": sparse("config.toml", 2**36),
    "a large claim": sparse("privacy.json", 2**36),
    "nested claims": as_text(lambda text: "[" * 1_000_000, "privacy.json"),
    "nested objects": as_text(lambda text: '{"a":' * 1_000_000, "privacy.json"),
    "a claim of 5,000 digits": as_text(lambda t: t.replace('"schema": ', f'"schema": {"9" * 5000}'), "privacy.json"),
    "a claim beyond numbers": as_text(lambda t: t.replace('"epsilon": 1', '"epsilon": 1e400'), "privacy.json"),
    "events without end": claim(lambda c: c | {"events": c["events"] * 20_000}),
    "claims without end": claim(lambda c: c | {str(number): 0 for number in range(100_000)}),
    "digests without end": claim(lambda c: c | {"sha256": c["sha256"] | {str(n): "" for n in range(50_000)}}),
    "a release before the steps without end": settings(
        plan__releases=[{"kind": "full", "name": f"{i}", "noise_multiplier": 50.0} for i in range(50_000)]
    ),
    "copies of 399 digits": replaced("noise_multiplicity = 2", f"noise_multiplicity = {DIGITS}"),
    "examples of 399 digits": replaced("expected_batch_size = 8", f"expected_batch_size = {DIGITS}"),
    "copies without end": settings(loss__noise_multiplicity=2**16 + 1),
    "examples without end": settings(machine={"physical_batch_size": 2**20 + 1}),
    "a claim of 399 digits": as_text(lambda t: t.replace('"schema": ', f'"schema": {DIGITS}'), "privacy.json"),
    "a deviation whose square is no number": settings(prior__max_deviation=1e200),
    "a deviation that no pixel has": settings(prior__max_deviation=2.1),
    "a split without sense": settings(prior__split=[1e300, 1e-300, 1.0, 1.0, 1.0]),
    "a learning rate without sense": settings(optimizer__learning_rate=1.2345e300),
    "guidance without sense": settings(sampler__guidance=1e300, loss__label_dropout=0.1),
    "spread noise levels": settings(preconditioning__noise_levels__std=1e308),
    "noise levels far away": settings(preconditioning__noise_levels__mean=-1e300),
    "a highest noise level without sense": settings(sampler__sigma_max=1e300),
    "a least noise level without sense": settings(sampler__sigma_min=1.2345e-300),
    "a concentration of noise levels without sense": settings(sampler__rho=1.2345e300),
    # weights
    "a prior that is a hole of a gigabyte": zeros([3, 1024, 1024], 38),
    "large weights": sparse("model.safetensors", 2**40),
    "a header without end": head(b'{"a"', 2**40),
    "a header of another length": lambda release: (
        (release / "model.safetensors").write_bytes((2**60).to_bytes(8, "little")),
        digested(release),
    ),
    "a nested header": head(b'{"a":' * 500_000),
    "a header of many tensors": head(
        json.dumps({str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(70_000)}).encode()
    ),
    "a header of a large shape": head(
        b'{"a":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,8]}}'
    ),
    "a header of many large sides": tensor(f"[{'1099511627775,' * 200_000}1]", 4),
    "a header of a long shape": tensor(f"[{'1,' * 10_000}1]", 4),
    "a shape of negative sides": tensor("[-1,-4]", 16),
    "no directions": weights(lambda t: t | {f"{PRIOR}{name}": t[f"{PRIOR}{name}"][..., :0] for name in ("vectors",)}),
    "no axes": weights(
        lambda t: (
            t
            | {f"{PRIOR}axes": torch.ones(3, 0, 0).double(), f"{PRIOR}class_variances": torch.ones(3, 0).double()}
            | {f"{PRIOR}variances": torch.ones(192).double()}
        )
    ),
    "no header": instead("model.safetensors", lambda path: path.write_bytes(b"")),
    "many directions": weights(
        lambda t: t | {f"{PRIOR}vectors": torch.eye(192, 193).double(), f"{PRIOR}variances": torch.ones(192).double()}
    ),
    # what is no file
    "a pipe for settings": instead("config.toml", os.mkfifo),
    "a pipe for a claim": instead("privacy.json", os.mkfifo),
    "a pipe for weights": instead("model.safetensors", os.mkfifo),
    "a pipe beside": lambda release: os.mkfifo(release / "more"),
    "a folder for settings": instead("config.toml", Path.mkdir),
    "a folder for a claim": instead("privacy.json", Path.mkdir),
    "a folder for weights": instead("model.safetensors", Path.mkdir),
    "a device for settings": instead("config.toml", lambda path: path.symlink_to("/dev/zero")),
    "a device for a claim": instead("privacy.json", lambda path: path.symlink_to("/dev/zero")),
    "a device for weights": instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": instead("config.toml", lambda path: path.symlink_to("nowhere")),
    "a link to itself": instead("privacy.json", lambda path: path.symlink_to(path.name)),
    "a file of two names": lambda release: os.link(release / "config.toml", release.parent / "another"),
    "files without end": lambda release: [(release / f"{number}").touch() for number in range(5000)],
    "a file whose name moves the cursor": lambda release: (release / "\x1b[2Jx").touch(),
    "a link for the folder": lambda release: (
        release.rename(release.parent / "free words"),
        release.symlink_to("free words"),
    ),
    # plans and methods that no run has
    "a method that is none": replaced('method = "diffusion"', 'method = "gan"'),
    "another method": replaced('method = "diffusion"', 'method = "prior"'),
    "no method": replaced('method = "diffusion"\n', ""),
    "a method of numbers": replaced('method = "diffusion"', "method = 7"),
    "a plan of no kind": replaced('kind = "private"', 'kind = "gaussian"'),
    "a plan without noise": replaced('kind = "private"', 'kind = "non-private"'),
    "sums that are a table": plan(releases={"first": 1.0}),
    "no sums": plan(releases=[]),
    "sums of no kind": sums(lambda entries: [entry | {"kind": "free"} for entry in entries]),
    "a sum of another name": sums(lambda entries: [entries[0] | {"name": "the losses were 0.5"}, *entries[1:]]),
    "sums in another order": sums(lambda entries: [entries[1], entries[0], *entries[2:]]),
    "a sum twice": sums(lambda entries: [entries[0], *entries]),
    "a sum that is left out": sums(lambda entries: entries[1:]),
    "a sum too many": sums(lambda entries: [*entries, entries[0] | {"name": "more"}]),
    "a sum with a key": sums(lambda entries: [entries[0] | {"note": 0.5}, *entries[1:]]),
    "a sum over all that is of batches": sums(lambda entries: [entries[-1] | {"name": "mean of all"}, *entries[1:]]),
    # words
    **words("a" * 256),
    **words("a" * 74_000),
    **words("an\x1b[31mt"),
    **words("ant\ncat"),
    **words("ant\u202etac"),
    **words("ant\u200bcat"),
    **words("a\u0308nt"),
    **words("ant\U000e0101\U000e0102"),
    **words("ant\u2028cat"),
    **words(" ant"),
    **words(""),
    **words("\U0001d159"),
    **words("ant\U00016fe4\U00016fe4"),
    **words("ant\ufffc"),
    **words("ant\U00013441"),
    "a class's name twice": settings(facts__class_names=["ant", "ant", "cat"]),
    "a sampler of capitals": settings(samplers={"Losses05": {"kind": "ddim", "steps": 3}}),
    "a sampler with a key": settings(samplers={"ant": {"kind": "ddim", "steps": 3, "note": 1}}),
    "a key that moves the cursor": replaced("count = 6", 'count = 6\n"\\u001b[2J" = 1'),
    "one class of numbers": settings(facts__class_names=["ant", 5, "cat"]),
    # free digits
    "noise of no step": plan(count=0),
    "fifteen digits of epsilon": claim(lambda c: c | {"epsilon": c["epsilon"] + 1e-9}),
    "an epsilon of the least digit below": claim(lambda c: c | {"epsilon": round(c["epsilon"] - 1e-4, 4)}),
    "an epsilon of two digits above": claim(lambda c: c | {"epsilon": round(c["epsilon"] + 2e-4, 4)}),
    "an epsilon by RDP of one digit below": claim(lambda c: c | {"epsilon_rdp": round(c["epsilon_rdp"] - 1e-4, 4)}),
    "an epsilon that is whole": as_text(lambda t: t.replace('"epsilon": 1.0,', '"epsilon": 1,'), "privacy.json"),
    "an epsilon that is true": claim(lambda c: c | {"epsilon": True}),
    "a size that is no whole number": claim(lambda c: c | {"dataset_size": 30.0}),
    "a norm that is whole": claim(
        lambda c: c | {"releases": [*c["releases"][:-1], c["releases"][-1] | {"max_norm": 1}]}
    ),
    "a setting that is whole": replaced("guidance = 0.0", "guidance = 0"),
    "less than nothing": replaced("guidance = 0.0", "guidance = -0.0"),
    "another spelling of a number": replaced("learning_rate = 0.004", "learning_rate = 4e-3"),
    "one digit more": replaced("learning_rate = 0.004", "learning_rate = 0.0040"),
    "a sign": replaced("seed = 0", "seed = +0"),
    "a number in hexadecimal": replaced("seed = 0", "seed = 0x0"),
    "an escaped letter": replaced('"ant"', '"\\u0061nt"'),
    "another quote": replaced('"ant"', "'ant'"),
    "a comment": as_text(lambda text: text + "# the losses were 0.5\n"),
    "an empty line": as_text(lambda text: text + "\n"),
    "other ends of lines": lambda release: (
        (release / "config.toml").write_bytes((release / "config.toml").read_bytes().replace(b"\n", b"\r\n")),
        digested(release),
    ),
    "another order of settings": as_text(lambda text: tomli_w.dumps(reordered(tomllib.loads(text)))),
    "another order of claims": claim(reordered),
    "another order of digests": claim(lambda c: c | {"sha256": dict(reversed(c["sha256"].items()))}),
    "escaped letters in a claim": as_text(lambda t: t.replace('"private"', '"\\u0070rivate"'), "privacy.json"),
    "spaces behind a claim": as_text(lambda text: text + " ", "privacy.json"),
    "a size without end": claim(lambda c: c | {"dataset_size": 10**30}),
    # numbers that no run comes to
    "directions that are images": prior("vectors", images),
    "axes that are images": prior("axes", images),
    "variances below zero": prior("variances", lambda t: -t),
    "variances of the classes below zero": prior("class_variances", lambda t: -t),
    "a variance without end": prior("variances", lambda t: t + 1e100),
    "a floor below zero": prior("floor", lambda t: -t),
    "no floor": prior("floor", torch.zeros_like),
    "weights of nothing": prior("log_weights", lambda t: t - 1e300),
    "weights without end": prior("log_weights", lambda t: t + 1e300),
    "centres far away": prior("centres", lambda t: t + 1e100),
    "centres that are images": prior("centres", lambda t: t + images(t)),
    "directions upside down": prior("vectors", lambda t: t * (1 + 1e-6)),
    "centres of other classes": prior("classes", lambda t: t.flip(0)),
    "a prior that is not finite": prior("variances", lambda t: t + float("inf")),
}


def verified(release):
    """Return what one verification says and takes."""
    from dpdm import cli

    out, err = io.StringIO(), io.StringIO()
    start, before, code = time.process_time(), peak(), 0
    sys.argv = ["dpdm", "verify", str(release)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "seconds": time.process_time() - start,
        "bytes": peak() - before,
    }


def peak():
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(release):
    found = {}
    with tempfile.TemporaryDirectory(dir=release.parent) as folder:
        assert verified(release)["code"] == 0  # and all libraries are there
        for number, (name, forge) in enumerate(HOSTILE.items()):
            forged = Path(folder) / str(number) / "release"
            shutil.copytree(release, forged)
            forge(copy.copy(forged))
            found[name] = verified(forged)
            print(name, f"{found[name]['seconds']:.1f}", file=sys.stderr, flush=True)
            shutil.rmtree(forged.parent)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
