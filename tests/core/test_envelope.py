"""What stands around the fields: JSON, `request_id`, `reply_to`, `expires_at`."""

from __future__ import annotations

import json

import pytest

from bridge.core.envelope import open_payload
from bridge.errors import MalformedRequest, PayloadTooLarge, ValidationFailed

LIMIT = 64 * 1024


def opened(payload, **options):
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return open_payload(raw, LIMIT, **options)


def test_fields_and_what_stands_around_them_are_read():
    envelope = opened({"a": 1, "request_id": "r1", "reply_to": "x", "expires_at": 1.5})
    assert envelope.refusal is None
    assert envelope.fields["a"] == 1
    assert (envelope.request_id, envelope.reply_to, envelope.expires_at) == ("r1", "x", 1.5)


MALFORMED = [
    b"",
    b" ",
    b"on",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'"text"',
    b"{'a':1}",
    b'{"a":1}}',
    b'{"a":NaN}',
    b'{"a":Infinity}',
    b'{"a":-Infinity}',
    b'{"a":"\\ud800"}',
    b'{"a":"\xff"}',
    b'{"a":"\xed\xa0\x80"}',
    b"\xef\xbb\xbf{}",
    b"\x00",
    b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
]


@pytest.mark.parametrize("payload", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_payload_is_refused(payload):
    assert isinstance(opened(payload).refusal, MalformedRequest)


@pytest.mark.parametrize("value", [b"0", b"{}", b'{"":0}', b"[[]]"])
@pytest.mark.parametrize(("is_batch", "taken", "refused"), [(False, 300, 1200), (True, 1200, 5000)])
def test_payload_of_very_many_values_is_refused(value, is_batch, taken, refused):
    """Parsed, 64 KiB of `{"":0}` take 2 MiB."""

    def refusal(values: int) -> object:
        payload = b'{"a":[' + b",".join([value] * values) + b"]}"
        return opened(payload, is_batch=is_batch).refusal

    assert refusal(taken) is None
    assert isinstance(refusal(refused), MalformedRequest)


def test_batch_of_many_values_is_taken_where_larger_ones_are():
    payload = b'{"a":[' + b",".join([b"0"] * 5000) + b"]}"
    assert open_payload(payload, 2 * LIMIT, is_batch=True).refusal is None


def test_empty_payload_will_do_where_no_fields_are_needed():
    assert opened(b"", may_be_empty=True).refusal is None
    assert isinstance(opened(b"x", may_be_empty=True).refusal, MalformedRequest)


def test_payload_of_the_limit_is_taken_and_one_byte_more_is_not():
    exact = b'{"a":"' + b"x" * (LIMIT - 8) + b'"}'
    assert len(exact) == LIMIT
    assert open_payload(exact, LIMIT).refusal is None
    assert isinstance(open_payload(exact + b" ", LIMIT).refusal, PayloadTooLarge)


@pytest.mark.parametrize("request_id", ["a", "A.z_0:9-", "x" * 128])
def test_request_id_of_the_allowed_characters_is_taken(request_id):
    envelope = opened({"request_id": request_id})
    assert (envelope.refusal, envelope.request_id) == (None, request_id)


@pytest.mark.parametrize(
    "request_id", ["", "x" * 129, "a b", "a/b", "é", "编号", "a\n", 5, True, []]
)
def test_other_request_id_is_refused_and_not_repeated(request_id):
    envelope = opened({"request_id": request_id})
    assert isinstance(envelope.refusal, MalformedRequest)
    assert envelope.request_id is None


@pytest.mark.parametrize(
    ("sent", "seconds"), [(1700000000, 1.7e9), (0.25, 0.25), ("12.5", 12.5), (-1, -1.0)]
)
def test_expires_at_is_a_number_or_one_as_text(sent, seconds):
    envelope = opened({"expires_at": sent})
    assert (envelope.refusal, envelope.expires_at) == (None, seconds)


@pytest.mark.parametrize("sent", ["soon", True, [], {}, "nan", "inf", "-inf"])
def test_expires_at_that_is_no_number_is_a_fault_of_that_field(sent):
    refusal = opened({"expires_at": sent}).refusal
    assert isinstance(refusal, ValidationFailed)
    assert [fault.loc for fault in refusal.errors] == [("expires_at",)]


def test_null_is_as_good_as_absent():
    envelope = opened({"request_id": None, "expires_at": None, "reply_to": None})
    assert envelope.refusal is None
    assert (envelope.request_id, envelope.expires_at, envelope.reply_to) == (None, None, None)


def test_refusal_keeps_what_the_reply_needs_to_find_its_way():
    envelope = opened({"request_id": "r1", "reply_to": "plugin/reply/me", "expires_at": "soon"})
    assert envelope.refusal is not None
    assert (envelope.request_id, envelope.reply_to) == ("r1", "plugin/reply/me")
