"""From what cases and calls came to, one verdict for each call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast_common.errors import HoldfastError
from holdfast_controller.vsphere import faults
from referee.case_table import Case, SimulatorsFault
from referee.refereed_session import NOT_THERE, Outcomes


class Ending(StrEnum):
    """How a call was judged."""

    PASSED = "passed"
    SIMULATORS_FAULT = "simulator's own fault"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement of one call, or of one command of a stock client."""

    name: str
    ending: Ending
    text: str = ""

    def line(self) -> str:
        """As it is printed."""
        return f"{self.name}: {self.ending}" + (f": {self.text}" if self.text else "")


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """How a case ended; ``error`` None: as it should."""

    case: Case
    error: Exception | None

    @property
    def is_simulators_fault(self) -> bool:
        """The other side lacks something, or does it otherwise than vSphere."""
        if isinstance(self.error, HoldfastError):
            return faults.fault_name(self.error) in NOT_THERE
        return isinstance(self.error, SimulatorsFault)


def judge_calls(
    methods: Iterable[str], results: Sequence[CaseResult], outcomes: Outcomes
) -> list[Verdict]:
    """One verdict for each method, in order."""
    return [_judge(method, results, outcomes) for method in methods]


def _judge(method: str, results: Sequence[CaseResult], outcomes: Outcomes) -> Verdict:
    there_for_it = [each for each in results if method in each.case.methods]
    if not there_for_it:
        return Verdict(name=method, ending=Ending.FAILED, text="no case of the referee's makes it")
    broken = [each for each in there_for_it if each.error and not each.is_simulators_fault]
    if broken:
        text = "; ".join(f"{each.case.title} {_text(each.error)}" for each in broken)
        return Verdict(name=method, ending=Ending.FAILED, text=text)
    if outcomes.passed.get(method):
        remarks = {
            str(each.error) for each in there_for_it if isinstance(each.error, SimulatorsFault)
        }
        text = f"but {'; '.join(sorted(remarks))}" if remarks else ""
        return Verdict(name=method, ending=Ending.PASSED, text=text)
    missing = outcomes.not_there(method)
    if missing is not None:
        return Verdict(name=method, ending=Ending.SIMULATORS_FAULT, text=_text(missing))
    stopped = [each for each in there_for_it if each.is_simulators_fault]
    if stopped:
        text = f"not reached: {_text(stopped[0].error)}"
        return Verdict(name=method, ending=Ending.SIMULATORS_FAULT, text=text)
    return Verdict(name=method, ending=Ending.FAILED, text="its case did not make the call")


def _text(error: Exception | None) -> str:
    """An error in one line."""
    if isinstance(error, HoldfastError):
        fault = faults.fault_name(error)
        return f"{fault}: {error.message}" if fault else error.line()
    return f"{type(error).__name__}: {error}"
