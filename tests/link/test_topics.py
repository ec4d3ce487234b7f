"""Topics: what is a request, where its reply goes, and where it may not go."""

from __future__ import annotations

import pytest

from bridge.errors import Forbidden, ReplyTopicForbidden
from bridge.link.topics import Asked, Topics, is_too_long


def topics(prefix="plugin", share="bridge", reply_filters=()):
    return Topics(prefix, share, "lab-1", reply_filters)


PLAIN = Asked("control", None)
BY_KIM = Asked("control", "kim")


@pytest.mark.parametrize(
    ("share", "filters"),
    [
        ("bridge", ["$share/bridge/plugin/request/+", "$share/bridge/plugin/request/+/+"]),
        ("", ["plugin/request/+", "plugin/request/+/+"]),
    ],
)
def test_requests_are_subscribed_to_in_one_share_or_plainly(share, filters):
    assert topics(share=share).filters == filters


def test_presence_is_told_per_instance():
    assert topics().presence == "plugin/status/lab-1"


@pytest.mark.parametrize(
    ("topic", "asked"),
    [
        ("plugin/request/control", PLAIN),
        ("plugin/request/control/kim", BY_KIM),
        ("plugin/request/no-such", Asked("no-such", None)),
    ],
)
def test_topic_tells_operation_and_client(topic, asked):
    assert topics().asked(topic) == asked


@pytest.mark.parametrize(
    ("asked", "request_id", "topic"),
    [
        (PLAIN, None, "plugin/reply/control"),
        (PLAIN, "r1", "plugin/reply/control/r1"),
        (BY_KIM, None, "plugin/reply/kim/control"),
        (BY_KIM, "r1", "plugin/reply/kim/control/r1"),
    ],
)
def test_default_reply_topic(asked, request_id, topic):
    assert topics().default_reply(asked, request_id) == topic


def test_prefix_may_have_several_levels():
    school = topics(prefix="school/a")
    assert school.asked("school/a/request/control/kim") == BY_KIM
    assert school.default_reply(PLAIN, "r") == "school/a/reply/control/r"


LONGEST = "plugin/reply/" + "x" * (256 - len("plugin/reply/"))


@pytest.mark.parametrize(
    ("topic", "asked"),
    [
        ("plugin/reply/me", PLAIN),
        ("plugin/reply/me/too/deep", PLAIN),
        ("plugin/reply/教室", PLAIN),
        (LONGEST, PLAIN),
        ("plugin/reply/kim/1", BY_KIM),
    ],
)
def test_topic_below_the_reply_prefix_may_be_used(topic, asked):
    assert topics().check_reply(topic, asked, "reply_to") == topic


FORBIDDEN = [
    "",
    "plugin/reply",
    "plugin/reply/",
    "plugin/replies/me",
    "other/reply/me",
    "Plugin/reply/me",
    "plugin/reply/+",
    "plugin/reply/#",
    "plugin/reply/a+b",
    "plugin/reply/a#",
    "$SYS/broker",
    "$share/g/plugin/reply/me",
    "plugin/reply/a\x00",
    "plugin/reply/\x01",
    "plugin/reply/a\n",
    "plugin/reply/\x7f",
    "plugin/reply/\x85",
    "plugin/reply/\ud800",
    "plugin/reply/\udcff",
    "plugin/reply/\uffff",
    LONGEST + "x",
    "plugin/reply/" + "字" * 82,
    "devices/a/control",
    "plugin/request/control",
    "plugin/status/lab-1",
    5,
    None,
    ["plugin/reply/me"],
]


@pytest.mark.parametrize("topic", FORBIDDEN)
def test_forbidden_reply_topic_is_refused(topic):
    with pytest.raises(ReplyTopicForbidden):
        topics().check_reply(topic, PLAIN, "reply_to")


@pytest.mark.parametrize(
    "topic", ["plugin/reply/kim", "plugin/reply/kim/", "plugin/reply/kimo/1", "plugin/reply/me"]
)
def test_client_may_hear_below_its_own_level_only(topic):
    with pytest.raises(ReplyTopicForbidden) as refusal:
        topics().check_reply(topic, BY_KIM, "reply_to")
    assert "plugin/reply/kim/" in refusal.value.detail("zh")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "allowed"),
    [
        ("answers/#", "answers/me", True),
        ("answers/#", "answers", True),
        ("answers/+", "answers/me", True),
        ("answers/+", "answers/me/2", False),
        ("+/in", "me/in", True),
        ("+/in", "me/out", False),
        ("answers/me", "answers/me", True),
        ("answers/#", "answer/me", False),
        ("answers/#", "answers/a\x00", False),
        ("answers/#", "answers/+", False),
        ("#", "anything/at/all", True),
        ("#", "$SYS/x", False),
        ("#", "devices/a/control", False),
        ("#", "devices", False),
        ("#", "plugin/request/control", False),
        ("#", "plugin/status/lab-1", False),
        ("+/+/control", "devices/a/control", False),
    ],
)
def test_extra_reply_topics_never_reach_what_others_act_on(topic_filter, topic, allowed):
    extra = topics(reply_filters=[topic_filter])
    if allowed:
        assert extra.check_reply(topic, PLAIN, "reply_to") == topic
    else:
        with pytest.raises(ReplyTopicForbidden):
            extra.check_reply(topic, PLAIN, "reply_to")


def test_client_level_is_never_an_operations_name():
    with pytest.raises(Forbidden):
        topics().check_client(Asked("control", "preset"), ("control", "preset"))
    topics().check_client(BY_KIM, ("control", "preset"))
    topics().check_client(PLAIN, ("control", "preset"))


@pytest.mark.parametrize(
    ("topic", "matches"),
    [
        ("plugin/request/control", True),
        ("plugin/request/control/kim", True),
        ("plugin/request/control/", True),
        ("plugin/request/", True),
        ("plugin/request", False),
        ("plugin/request/control/kim/", False),
        ("plugin/reply/control", False),
        ("other/request/control", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("share", ["bridge", ""])
def test_request_topics_are_those_of_the_filters(share, topic, matches):
    assert topics(share=share).is_request(topic) is matches


@pytest.mark.parametrize(
    ("levels", "too_long"),
    [
        (["control", "k" * 128], False),
        (["o" * 128, "😀" * 128], False),
        (["control", "k" * 489], False),
        (["control", "k" * 490], True),
        (["o" * 498], True),
        (["control", "😀" * 129], True),
        (["control", "\udcff" * 500], True),
    ],
)
def test_request_topic_of_more_than_512_bytes_with_a_long_level_is_too_long(levels, too_long):
    assert is_too_long("/".join(("plugin/request", *levels))) is too_long
