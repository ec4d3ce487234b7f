"""What the demo prints when it is ready: what runs where, and commands to paste."""

from collections.abc import Sequence

import orjson

from ..devices.models import JsonObject
from ..errors import Text
from ..settings import Settings
from .devices import ALIAS, SEQUENCE, Device
from .front_door import USUAL_PORT

_READY = Text(
    "演示已就绪，一切都在本机运行。", "The demo is ready. Everything runs on this machine."
)
_PASTE = Text(
    "在另一个终端里粘贴下面的命令；开发板收到命令时会显示在这里。",
    "Paste these commands into another terminal. The commands that the boards receive appear here.",
)
_OFFLINE = Text("离线", "offline")
_STOP = Text(
    "按 Ctrl-C 结束，不会留下任何文件。", "Press Ctrl-C to end the demo. It leaves no files behind."
)


def guide(settings: Settings, devices: Sequence[Device]) -> str:
    """The text, in the language of the settings; its commands are whole lines."""
    language = settings.language
    commands = [
        f"# {purpose.in_(language)}\n{command}\n"
        for purpose, command in _commands(settings, devices)
    ]
    return "\n".join(
        [
            "",
            _READY.in_(language),
            "",
            *_places(settings, devices),
            "",
            _PASTE.in_(language),
            "",
            *commands,
            _STOP.in_(language),
            "",
        ]
    )


def _places(settings: Settings, devices: Sequence[Device]) -> list[str]:
    rows = [
        ("HTTP", _url(settings)),
        ("Console", f"{_url(settings)}/console"),
        ("API", f"{_url(settings)}/docs"),
        ("MQTT", f"localhost:{settings.mqtt_port}"),
        *((device.uuid, _described(device)) for device in devices if device.active),
    ]
    return [f"  {what:<14}{where}" for what, where in rows]


def _described(device: Device) -> str:
    sensors = [name.in_(device.language) for s in device.sensors for name in s.fields.values()]
    ports = [f"{kind} 1–{count}" if count > 1 else kind for kind, count in device.ports.items()]
    offline = [] if device.online else [_OFFLINE.in_(device.language)]
    return " · ".join([device.name, device.room, *offline, *sensors, *ports])


def _commands(settings: Settings, devices: Sequence[Device]) -> list[tuple[Text, str]]:
    language = settings.language
    url = _url(settings)
    first, second = devices[0].uuid, devices[1].uuid
    temperature = Text("温度", "temperature").in_(language)
    lamp_on = {"device_uuid": first, "port_type": "led", "port_id": 1, "action": "on"}
    lamp_off = {"device_uuid": first, "port": ALIAS.in_(language), "action": "off"}
    return [
        (Text("健康检查", "Check the health"), f"curl {url}/health"),
        (Text("列出设备", "List the devices"), f"curl {url}/api/devices"),
        (
            Text("查询温度", "Read a temperature"),
            f'curl "{url}/api/sensor-data?device_uuid={first}&sensor={temperature}"',
        ),
        (
            Text("打开 1 号灯", "Switch led 1 on"),
            f'curl -X POST {url}/api/control -H "Content-Type: application/json" '
            f"-d '{_json(lamp_on)}'",
        ),
        (
            Text(
                "经 MQTT 5 查询水温（需要 mosquitto-clients）",
                "Read a water temperature over MQTT 5 (needs mosquitto-clients)",
            ),
            _ask5(settings, "sensor-data", {"device_uuid": second, "sensor": "DS18B20"}),
        ),
        (
            Text("经 MQTT 5 执行预设（一个序列）", "Run a preset, a sequence, over MQTT 5"),
            _ask5(settings, "preset", {"device_uuid": first, "preset_key": SEQUENCE}),
        ),
        (
            Text("经 MQTT 3.1.1 按名称关灯", "Switch a light off by its name over MQTT 3.1.1"),
            _ask311(settings, "control", lamp_off),
        ),
    ]


def _ask5(settings: Settings, operation: str, fields: JsonObject) -> str:
    prefix = settings.mqtt_topic_prefix
    return (
        f"mosquitto_rr -V 5{_port(settings.mqtt_port)} -q 1 -t {prefix}/request/{operation} "
        f"-e {prefix}/reply/me -m '{_json(fields)}'"
    )


def _ask311(settings: Settings, operation: str, fields: JsonObject) -> str:
    """One line to paste: the question leaves when the ear is at the default reply topic."""
    prefix, port = settings.mqtt_topic_prefix, _port(settings.mqtt_port)
    return (
        f"(sleep 1; mosquitto_pub{port} -t {prefix}/request/{operation} -m '{_json(fields)}') & "
        f"mosquitto_sub{port} -t {prefix}/reply/{operation} -C 1"
    )


def _url(settings: Settings) -> str:
    return f"http://localhost:{settings.service_port}"


def _port(port: int) -> str:
    return "" if port == USUAL_PORT else f" -p {port}"


def _json(fields: JsonObject) -> str:
    return orjson.dumps(fields).decode()
