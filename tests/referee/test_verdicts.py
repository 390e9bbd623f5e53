from __future__ import annotations

from holdfast_common.errors import CapabilityAbsent, VsphereFailed
from referee.case_table import Case, Simulator, SimulatorsFault
from referee.refereed_session import Outcomes
from referee.verdicts import CaseResult, Ending, Verdict, judge_calls


def nothing(_: Simulator) -> None:
    """Does nothing."""


def result(*methods: str, error: Exception | None = None) -> CaseResult:
    case = Case(title="A case.", methods=frozenset(methods), work=nothing)
    return CaseResult(case=case, error=error)


def judged(results: list[CaseResult], outcomes: Outcomes) -> Verdict:
    (verdict,) = judge_calls(["Login"], results, outcomes)
    return verdict


def test_a_call_that_came_back_and_whose_case_is_content_passed() -> None:
    outcomes = Outcomes(passed={"Login": 1})
    assert judged([result("Login")], outcomes).line() == "Login: passed"


def test_a_call_that_no_case_is_there_for_failed() -> None:
    assert judged([result("Logout")], Outcomes(passed={"Login": 1})).ending is Ending.FAILED


def test_a_call_that_its_case_did_not_make_failed() -> None:
    assert judged([result("Login")], Outcomes()).ending is Ending.FAILED


def test_a_call_passed_only_when_every_case_of_it_is_content() -> None:
    outcomes = Outcomes(passed={"Login": 2})
    broken = result("Login", error=AssertionError("what came back is wrong"))
    verdict = judged([result("Login"), broken], outcomes)
    assert verdict.ending is Ending.FAILED
    assert "what came back is wrong" in verdict.text


def test_a_refusal_of_vspheres_is_no_fault_of_the_simulators() -> None:
    error = VsphereFailed("no", fault="InvalidArgument")
    outcomes = Outcomes()
    outcomes.note("Login", error)
    assert judged([result("Login", error=error)], outcomes).ending is Ending.FAILED


def test_a_method_that_the_simulator_lacks_is_its_own_fault() -> None:
    error = CapabilityAbsent("not implemented", fault="MethodNotFound")
    outcomes = Outcomes()
    outcomes.note("Login", error)
    verdict = judged([result("Login", error=error)], outcomes)
    assert verdict.ending is Ending.SIMULATORS_FAULT
    assert "not implemented" in verdict.line()


def test_a_call_behind_a_method_that_the_simulator_lacks_was_not_reached() -> None:
    error = CapabilityAbsent("not implemented", fault="MethodNotFound")
    verdict = judged([result("Login", "Logout", error=error)], Outcomes())
    assert verdict.ending is Ending.SIMULATORS_FAULT
    assert "not reached" in verdict.text


def test_what_the_simulator_does_otherwise_is_said_with_the_pass() -> None:
    outcomes = Outcomes(passed={"Login": 1})
    verdict = judged([result("Login", error=SimulatorsFault("nothing is frozen"))], outcomes)
    assert verdict.line() == "Login: passed: but nothing is frozen"
