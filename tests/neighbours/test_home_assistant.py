"""The examples of docs/home-assistant.md do what they say.

Home Assistant itself is not run. The tests read the YAML, send what it would send, and evaluate
its templates with the template engine that it uses, Jinja.
"""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
import jinja2
import pytest
import yaml

from tests.lab.bridge import PROJECT, Bridge
from tests.lab.platform import BOARD_A, UNKNOWN_BOARD
from tests.lab.requester import Requester

PAGE = (PROJECT / "docs" / "home-assistant.md").read_text(encoding="utf-8")
BLOCKS = {"docs/home-assistant.md": {"rest", "mqtt"}}
KEY = "of-home-assistant"
USER = "homeassistant"


class Loader(yaml.SafeLoader):
    """Knows the tag by which Home Assistant reads secrets.yaml."""


Loader.add_constructor("!secret", lambda _, node: {"bridge_api_key": KEY}[node.value])


def example(name: str) -> Any:
    (text,) = re.findall(rf"<!-- snippet: {name} -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    # A subclass of the safe loader.
    return yaml.load(text, Loader)


def rendered(template: str, **variables: Any) -> str:
    return (
        jinja2.Environment(undefined=jinja2.StrictUndefined)
        .from_string(template)
        .render(**variables)
    )


def test_every_example_of_the_page_is_tested():
    assert re.findall(r"<!-- snippet: (\w+) -->", PAGE) == ["rest", "mqtt"]
    assert PAGE.count("```yaml") == 2


# Over HTTP


@pytest.fixture
def guarded(private_bridge) -> Bridge:
    bridge: Bridge = private_bridge(API_KEYS=f"home-assistant:{KEY}")
    return bridge


async def test_rest_sensor_shows_the_reading(guarded):
    (sensor,) = example("rest")["sensor"]
    async with aiohttp.ClientSession(headers=sensor["headers"]) as client:
        url = sensor["resource"].replace("localhost:9001", f"{guarded.host}:{guarded.port}")
        async with client.get(url, params=sensor["params"]) as response:
            answer = await response.json()
    assert rendered(sensor["value_template"], value_json=answer) == "29.1"
    assert rendered(sensor["availability"], value_json=answer) == "True"
    assert answer["data"]["unit"] == sensor["unit_of_measurement"]


async def test_rest_switch_switches_the_led(guarded, board):
    configuration = example("rest")
    (switch,) = configuration["template"][0]["switch"]
    listening = await board(BOARD_A, broker=guarded.broker)
    for name in ("turn_on", "turn_off"):
        kind, command = switch[name]["action"].split(".")
        called = configuration[kind][command]
        body = rendered(called["payload"], **switch[name]["data"])
        headers = {"Content-Type": called["content_type"], **called["headers"]}
        url = called["url"].replace("localhost:9001", f"{guarded.host}:{guarded.port}")
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.request(called["method"], url, data=body) as response,
        ):
            assert response.status == 200
    told = await listening.next_commands(2)
    assert [command["action"] for command in told] == ["on", "off"]


# Over MQTT


@pytest.fixture
async def home_assistant(connect_requester) -> Requester:
    """Its MQTT integration speaks 3.1.1 unless told otherwise."""
    client: Requester = await connect_requester(version="3.1.1")
    return client


async def heard(client: Requester, topic: str) -> Any:
    return json.loads((await client.next_message(topic=topic)).payload)


async def test_mqtt_sensor_shows_the_reading_that_the_automation_asks_for(bridge, home_assistant):
    configuration = example("mqtt")
    (sensor,) = configuration["mqtt"]["sensor"]
    (automation,) = configuration["automation"]
    (action,) = automation["actions"]
    assert action["action"] == "mqtt.publish"
    (availability,) = sensor["availability"]
    assert availability["topic"] == sensor["state_topic"]
    await home_assistant.subscribe(sensor["state_topic"])
    data = action["data"]
    await home_assistant.publish(data["topic"], data["payload"], qos=data["qos"])
    answer = await heard(home_assistant, sensor["state_topic"])
    assert rendered(sensor["value_template"], value_json=answer) == "29.1"
    assert rendered(availability["value_template"], value_json=answer) == "online"
    unknown = data["payload"].replace(BOARD_A, UNKNOWN_BOARD)
    await home_assistant.publish(data["topic"], unknown, qos=data["qos"])
    answer = await heard(home_assistant, sensor["state_topic"])
    assert rendered(availability["value_template"], value_json=answer) == "offline"


async def test_mqtt_switch_follows_the_command_and_is_unknown_when_it_is_refused(
    bridge, home_assistant, board
):
    (switch,) = example("mqtt")["mqtt"]["switch"]
    await home_assistant.subscribe(switch["state_topic"])

    async def state_after(payload: str) -> str:
        await home_assistant.publish(switch["command_topic"], payload, qos=switch["qos"])
        answer = await heard(home_assistant, switch["state_topic"])
        return rendered(switch["value_template"], value_json=answer)

    listening = await board(BOARD_A)
    # The second time too: it is no duplicate.
    for _ in range(2):
        assert await state_after(switch["payload_on"]) == switch["state_on"]
        assert await state_after(switch["payload_off"]) == switch["state_off"]
    told = await listening.next_commands(4)
    assert [command["action"] for command in told] == ["on", "off"] * 2
    await listening.disconnect()
    # What Home Assistant takes for "unknown".
    assert await state_after(switch["payload_on"]) == "None"


def test_all_topics_are_those_that_the_acl_opens_to_such_a_user():
    acl = (PROJECT / "deploy" / "mosquitto" / "acl").read_text(encoding="utf-8")
    opened = acl.replace("plugin-a", USER)
    topics = set(re.findall(r"plugin/(?:request|reply)/[\w/-]*\w", PAGE))
    for topic in topics:
        if topic.startswith("plugin/request/"):
            assert f"topic write {topic}\n" in opened
        else:
            assert topic.startswith(f"plugin/reply/{USER}")
    assert "pattern read plugin/reply/%u/#" in acl
