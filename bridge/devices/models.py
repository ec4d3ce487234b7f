"""What requests carry, what replies hold, and what the database knows of a device."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

JsonObject = dict[str, Any]


def no_boolean(value: object) -> object:
    # pydantic would read true as 1.
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


def _no_giant(value: int) -> int:
    # As text any size passes pydantic, but JSON readers can't read it back.
    if abs(value) >= 2**53:
        raise PydanticCustomError("int_parsing_size", "Input is too large a number")
    return value


WholeNumber = Annotated[int, BeforeValidator(no_boolean), AfterValidator(_no_giant)]
DeviceUuid = Annotated[
    str, Field(min_length=1, max_length=36, description="设备 UUID / the device's UUID")
]
Name = Annotated[str, Field(min_length=1, max_length=100)]


# Of a fixed set of words, which may come in any case.
Word = Annotated[
    str,
    Field(min_length=1, max_length=100),
    BeforeValidator(lambda value: value.casefold() if isinstance(value, str) else value),
]


def _one_of(*words: str) -> Any:
    """What the documents say a word may be; its use decides, with an error that says more."""
    return Field(json_schema_extra={"enum": list(words)})


class Fields(BaseModel):
    """The fields of one operation. Unknown ones are ignored; numbers may come as text.

    Text loses leading and trailing white space. What is then empty counts as not sent, and so
    does null.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _trimmed(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        return {
            name: kept
            for name, value in sent.items()
            if (kept := value.strip() if isinstance(value, str) else value) not in (None, "")
        }


class NoFields(Fields):
    """For operations that take none."""


class SensorDataFields(Fields):
    device_uuid: DeviceUuid
    sensor: Name = Field(
        description="传感器名，如 温度、湿度、雨水、temperature / "
        "the sensor's name, such as temperature, humidity, rain",
        examples=["温度", "temperature"],
    )


class ControlFields(Fields):
    # `check_control` checks it; the schema tells it.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["port"]}, {"required": ["port_type", "port_id"]}]
        }
    )

    device_uuid: DeviceUuid
    port_type: Annotated[Word, _one_of("led", "relay", "servo", "pwm")] | None = Field(
        None,
        description="led、relay、servo、pwm，与 port_id 一起 / with port_id",
        examples=["led", "relay", "servo", "pwm"],
    )
    port_id: WholeNumber | None = Field(
        None,
        description="端口号 1–4（pwm 1–2），0 表示全部 led 或 relay / "
        "the port's number, 0 for all leds or relays",
        examples=[1],
    )
    port: Name | None = Field(
        None,
        description="端口的名称或别名，代替 port_type 和 port_id / "
        "the port's name or alias, in place of port_type and port_id",
        examples=["客厅灯"],
    )
    action: Annotated[Word, _one_of("on", "off", "set")] = Field(
        description="led、relay：on / off；servo、pwm：set", examples=["on", "off", "set"]
    )
    value: WholeNumber | None = Field(
        None,
        description="servo 角度 0–180，pwm 百分比 0–100 / degrees or percent",
        examples=[90],
    )
    frequency: Annotated[int, Field(ge=1, le=40_000_000), BeforeValidator(no_boolean)] | None = (
        Field(None, description="pwm 频率 Hz，默认 5000 / pwm frequency in Hz, default 5000")
    )

    @field_validator("frequency", mode="before")
    @classmethod
    def _no_frequency(cls, value: object) -> object:
        # Forms and tools without an empty value send 0.
        is_zero = not isinstance(value, bool) and value in (0, "0")
        return None if is_zero else value


class PresetFields(Fields):
    device_uuid: DeviceUuid
    preset_key: Name = Field(description="预设的 key 或名称 / the preset's key or name")
    parameters: JsonObject | None = Field(
        None, description="覆盖同名的预设参数 / overrides stored parameters of the same name"
    )


class DeviceFields(Fields):
    device_uuid: DeviceUuid


class BatchFields(Fields):
    requests: Annotated[list[JsonObject], Field(min_length=1, max_length=100)] = Field(
        description="每项为 operation 及其字段 / each with operation and its fields",
    )


class SensorRow(NamedTuple):
    """The latest value of one sensor, as stored."""

    sensor_name: str
    sensor_value: str | None
    sensor_unit: str | None
    sensor_type: str | None
    timestamp: datetime | None


@dataclass(slots=True)
class DeviceReadings:
    """A device and the latest value of each of its sensors."""

    uuid: str
    name: str
    online: bool
    last_seen: datetime | None
    # The product's sensors and the device's own configuration of them, as stored.
    sensor_types_json: str | None
    sensor_config_json: str | None
    rows: list[SensorRow] = field(default_factory=list)


@dataclass(slots=True)
class DeviceControls:
    """A device and what tells of its ports; the JSON columns as stored."""

    uuid: str
    name: str
    online: bool
    product_ports_json: str | None
    control_config_json: str | None


@dataclass(slots=True)
class DeviceProfile(DeviceControls):
    """A device and all that can be done with it: its ports, and in its settings its presets."""

    settings_json: str | None


@dataclass(slots=True)
class Reading:
    """`sensor-data`: one sensor's latest value."""

    value: float | int | str
    unit: str
    sensor_name: str
    sensor_type: str | None
    timestamp: datetime | None
    device_name: str
    last_seen: datetime | None
    raw_value: str
    online: bool
    age_seconds: float | None


@dataclass(slots=True)
class ControlResult:
    """`control`: the command that the broker has taken for the device."""

    result: Literal["success"]
    topic: str
    command: JsonObject
    device_name: str
    online: bool


@dataclass(slots=True)
class ExecutedStep:
    """One step of a sequence that has left; `delay` in seconds, after the step."""

    step: int
    command: JsonObject
    delay: float
    status: Literal["success", "unreachable", "refused", "unknown"]


@dataclass(slots=True)
class PresetResult:
    """`preset`, of an ordinary one."""

    success: bool
    message: str
    preset_name: str


@dataclass(slots=True)
class SequenceResult:
    """`preset`, of a sequence: which steps left, and why the others did not."""

    success: bool
    message: str
    preset_name: str
    total_steps: int
    executed_steps: list[ExecutedStep]
    errors: list[str]


@dataclass(slots=True)
class Port:
    """A port that can be controlled, and what people call it."""

    port_type: str
    port_id: int
    name: str | None
    alias: str | None


@dataclass(slots=True)
class PresetSummary:
    """A preset of a device; `total_seconds` is what its delays add up to."""

    preset_key: str
    name: str
    type: str
    total_seconds: float


@dataclass(slots=True)
class DeviceDescription:
    """`device`: what it says now and what can be done with it."""

    device_uuid: str
    name: str
    online: bool
    last_seen: datetime | None
    sensors: list[Reading]
    ports: list[Port]
    presets: list[PresetSummary]


@dataclass(slots=True)
class DeviceConfig:
    """What plugin-service reads of a device's configuration, with the names that it looks for."""

    device_control_config: JsonObject
    device_preset_commands: list[JsonObject]


@dataclass(slots=True)
class BatchResult:
    """`batch`: one reply body per request, in order."""

    results: list[JsonObject]


@dataclass(slots=True)
class Health:
    """`health`: whether we can do our work, from the last query and the link's own state."""

    status: Literal["healthy", "degraded"]
    database: bool
    mqtt: bool
    version: str
    uptime_seconds: float
    in_flight: int


@dataclass(slots=True)
class OperationInfo:
    """One operation: its name, what it does, where it is, and the JSON Schema of its fields."""

    operation: str
    summary: str
    mqtt_topic: str
    http_method: str
    http_path: str
    fields: JsonObject


@dataclass(slots=True)
class OperationList:
    """`operations`."""

    operations: list[OperationInfo]
