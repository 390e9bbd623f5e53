from __future__ import annotations

from referee.product_calls import calls_of_the_product, is_method, texts_of
from referee.simulator_cases import covered_methods


def test_every_call_of_the_product_has_a_case_of_the_referee() -> None:
    calls = calls_of_the_product()
    without = {
        method: modules for method, modules in calls.items() if method not in covered_methods()
    }
    assert not without, "write a case for these calls in tests/referee/simulator_cases.py"


def test_the_calls_are_found_in_the_source() -> None:
    calls = calls_of_the_product()
    assert "vsphere/session.py" in calls["Login"]
    assert "vsphere/changed_areas.py" in calls["QueryChangedDiskAreas"]
    # chosen by a condition, not written at the call itself
    assert {"CreateSnapshot_Task", "CreateSnapshotEx_Task"} <= calls.keys()


def test_a_name_in_a_docstring_or_a_rule_of_repeating_is_no_call() -> None:
    source = '''
"""PowerOnVM_Task"""
REPEATABLE: Final = frozenset({"CurrentTime"})
def work():
    """Destroy_Task"""
    call(machine, "Logout" if done else "Rename_Task")
'''
    assert {each for each in texts_of(source) if is_method(each)} == {"Logout", "Rename_Task"}


def test_a_word_that_is_no_method_is_none() -> None:
    assert not is_method("VMFS")
    assert not is_method("NotSupported")
    assert is_method("RegisterVM_Task")
