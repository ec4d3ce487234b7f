"""The demo's six devices: what the platform's tables would say of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..devices.models import JsonObject
from ..errors import Language, Text
from .simulation import Sensor, dht11, ds18b20, rain_sensor

SEQUENCE = "class_begin"
ALIAS = Text("客厅灯", "living room light")


@dataclass(frozen=True, slots=True)
class Device:
    uuid: str
    name: str
    room: str
    product: str
    language: Language
    sensors: tuple[Sensor, ...] = ()
    # How many ports of each type it has.
    ports: Mapping[str, int] = field(default_factory=lambda: {"led": 1})
    # What people named: as in `device_control_config`, and in `device_settings`.
    control_config: JsonObject = field(default_factory=dict)
    presets: tuple[JsonObject, ...] = ()
    # Whether its board is simulated; if not, the tables hold its last report.
    online: bool = True
    # As in `is_active`.
    active: bool = True

    def sensor_types(self) -> JsonObject:
        return {
            f"{sensor.type}_{field}": {
                "name": name.in_(self.language),
                "type": sensor.type,
                "unit": "",
                "data_field": field,
                "enabled": True,
            }
            for sensor in self.sensors
            for field, name in sensor.fields.items()
        }

    def control_ports(self) -> JsonObject:
        return {
            f"{kind}_{number}": {
                "name": f"{kind.upper()}{number}",
                "type": kind.upper(),
                "device_id": number,
                "enabled": True,
            }
            for kind, count in self.ports.items()
            for number in range(1, count + 1)
        }


def demo_devices(language: Language) -> tuple[Device, ...]:
    """The devices, named in one language; their sensors begin anew."""

    def say(zh: str, en: str) -> str:
        return Text(zh, en).in_(language)

    classroom, laboratory = say("101 教室", "Room 101"), say("科学实验室", "Science lab")
    kit, thermometer = say("教室套件", "classroom kit"), say("温度计", "thermometer")
    device = partial(Device, language=language)
    return (
        _kit_with_everything(device, say, classroom, kit),
        device(
            "demo-board-2",
            say("演示板二", "demo two"),
            laboratory,
            thermometer,
            sensors=(ds18b20(),),
        ),
        _lights(device, say, classroom),
        device(
            "demo-board-4",
            say("植物角", "plant corner"),
            laboratory,
            kit,
            sensors=(dht11(),),
            ports={"relay": 2, "pwm": 1},
            control_config={
                "relay_1": {"custom_name": say("水泵", "water pump")},
                "pwm_1": {"custom_name": say("补光灯", "grow light")},
            },
        ),
        device(
            "demo-board-5",
            say("鱼缸水温", "aquarium"),
            laboratory,
            thermometer,
            sensors=(ds18b20(),),
            online=False,
        ),
        device(
            "demo-board-6", say("旧实验板", "old board"), classroom, kit, online=False, active=False
        ),
    )


def _kit_with_everything(
    device: Callable[..., Device], say: Callable[[str, str], str], room: str, product: str
) -> Device:
    return device(
        "demo-board-1",
        say("演示板一", "demo one"),
        room,
        product,
        sensors=(dht11(), rain_sensor()),
        ports={"led": 4, "relay": 1, "servo": 1, "pwm": 1},
        control_config={
            "led_1": {"alias": say(ALIAS.zh, ALIAS.en)},
            "led_2": {"alias": say("卧室灯", "bedroom light")},
            "relay_1": {"alias": say("风扇", "fan")},
            "servo_1": {"alias": say("窗户", "window")},
        },
        presets=(
            _sequence(say("上课模式", "class begins")),
            _blink(say("客厅灯闪烁", "blink the living room light")),
        ),
    )


def _lights(device: Callable[..., Device], say: Callable[[str, str], str], room: str) -> Device:
    return device(
        "demo-board-3",
        say("101 教室灯光", "Room 101 lights"),
        room,
        say("灯光控制器", "light controller"),
        ports={"led": 2},
        control_config={
            "led_1": {"custom_name": say("讲台灯", "desk lamp")},
            "led_2": {"custom_name": say("黑板灯", "blackboard lamp")},
        },
    )


def _sequence(name: str) -> JsonObject:
    # As the platform stores steps, which is not what the firmware takes.
    return {
        "preset_key": SEQUENCE,
        "name": name,
        "type": "sequence",
        "preset_type": "sequence",
        "steps": [
            _step("led", 1, delay=0.5, value=1),
            _step("led", 2, delay=0.5, value=1),
            _step("relay", 1, delay=0.5, value=1),
            _step("servo", 1, delay=0.5, angle=90),
            _step("pwm", 1, delay=0, frequency=5000, duty=60),
        ],
    }


def _blink(name: str) -> JsonObject:
    return {
        "preset_key": "blink_led_1",
        "name": name,
        "device_type": "led",
        "device_id": 1,
        "preset_type": "blink",
        "parameters": {"count": 3, "on_time": 500, "off_time": 500},
    }


def _step(kind: str, number: int, *, delay: float, **values: Any) -> JsonObject:
    command = {"cmd": kind, "device_id": number, "device_type": kind, **values}
    return {"command": command, "delay": delay}
