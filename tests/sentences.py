"""How many words a sentence has, for tests that no text has long ones."""

import re


def words_of_sentences(text, ends=".!?:"):
    """The words of each sentence of a page's prose; a piece of code is one word, and a link is its text."""
    text = re.sub(r"^ *```.*?^ *```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<=\n\n)(?: {4}.*\n)+|^[|#].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|<[^>\s=][^>]*>", "]", re.sub(r"`[^`]*`", "code", text))
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n\s*(?=[-*] |\d+\. )", text)]
    sentences = [part for whole in paragraphs for part in re.split(rf"(?<=[{ends}])[*_)\]]*\s+", whole)]
    return [[word for word in each.split() if re.search(r"[A-Za-z]{2}|^[aAI]$", word)] for each in sentences]
