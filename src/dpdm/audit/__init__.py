"""Attacks on a run's claim: on its mechanism, its noisy sums, its generator and its images."""

from dpdm.audit.parametric import Check, check_mechanism
from dpdm.audit.report import STAMP, Audit, audit_run

__all__ = ["STAMP", "Audit", "Check", "audit_run", "check_mechanism"]
