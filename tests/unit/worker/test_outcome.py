"""Outcomes are fit for the wire, whatever was raised."""

from adjourn.v1.lease_service_pb2 import Outcome as WireOutcome
from adjourn.v1.lease_service_pb2 import Settlement
from adjourn.worker import outcome
from adjourn.worker.outcome import OutcomeKind, ended_with_error, raised


def test_kinds_are_those_of_the_wire():
    assert {f"OUTCOME_{kind.name}": int(kind) for kind in OutcomeKind} | {"OUTCOME_UNSPECIFIED": 0} == dict(
        WireOutcome.items()
    )


def test_texts_are_cut_to_the_bounds_of_the_wire():
    cut = ended_with_error(OutcomeKind.RETRY, "t" * 501, "m" * 10_001, "start" + "x" * 100_000 + "end")
    assert (len(cut.error_type), len(cut.error_message), len(cut.error_traceback)) == (500, 10_000, 100_000)
    assert cut.error_traceback.endswith("xend")
    assert "start" not in cut.error_traceback


def test_texts_at_the_bounds_are_left_alone():
    whole = ended_with_error(OutcomeKind.RETRY, "t" * 500, "m" * 10_000, "x" * 100_000)
    assert (whole.error_type, whole.error_message, whole.error_traceback) == ("t" * 500, "m" * 10_000, "x" * 100_000)


def test_lone_surrogates_do_not_break_protobuf():
    bad = ended_with_error(OutcomeKind.FAILED, "\ud800", "name \udcff", "\udc80")
    settlement = Settlement()
    settlement.error.message = bad.error_message
    assert settlement.error.message == "name \\udcff"
    assert bad.error_type == "\\ud800"


def test_the_type_is_a_dotted_name():
    class Local(Exception):
        pass

    assert raised(OutcomeKind.RETRY, ValueError("x")).error_type == "ValueError"
    assert raised(OutcomeKind.RETRY, Local()).error_type.endswith("test_the_type_is_a_dotted_name.<locals>.Local")


def test_an_exception_that_cannot_be_printed_is_still_an_outcome():
    class Rude(Exception):
        def __str__(self):
            raise OSError("no")

    rude = raised(OutcomeKind.RETRY, Rude())
    assert rude.error_message == "<str() of the exception raised OSError>"
    assert "Rude" in rude.error_traceback


def test_a_reason_goes_before_the_message():
    assert raised(OutcomeKind.RETRY, ValueError("x"), reason="because").error_message == "because: x"
    assert raised(OutcomeKind.RETRY, ValueError(), reason="because").error_message == "because"


def test_success_needs_no_text():
    assert outcome.SUCCEEDED == (1, b"", "", "", "")
