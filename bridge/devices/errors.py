"""What can be wrong with a command, a preset or a name; `bridge/errors.py` draws the whole tree."""

from ..errors import BridgeError, Text


class InvalidControl(BridgeError):
    code = 400
    error = "invalid_control"
    in_operation = True


class UnknownPortType(InvalidControl):
    text = Text(
        "未知的端口类型「{port_type}」，可用：led、relay、servo、pwm",
        "Unknown port type '{port_type}'; use led, relay, servo or pwm",
    )
    property_name = "port_type"


class UnknownAction(InvalidControl):
    text = Text(
        "端口类型 {port_type} 不支持动作「{action}」，可用：{actions}",
        "A {port_type} has no action '{action}'; use {actions}",
    )
    property_name = "action"


class ValueMissing(InvalidControl):
    text = Text(
        "{port_type} 的 set 动作需要 value（0–{maximum}）",
        "A {port_type} needs a value with set (0-{maximum})",
    )
    property_name = "value"


class UnknownPort(InvalidControl):
    text = Text(
        "设备没有端口「{port}」，现有端口：{ports}",
        "The device has no port '{port}'; its ports are: {ports}",
    )
    property_name = "port_id"


class UnknownPortName(UnknownPort):
    property_name = "port"


class AmbiguousPort(InvalidControl):
    text = Text(
        "端口名「{port}」对应多个端口，请用 port_type 和 port_id 指明其一：{ports}",
        "Several ports are called '{port}'; name one by port_type and port_id: {ports}",
    )
    property_name = "port"


class UncontrollableDevice(InvalidControl):
    text = Text(
        "设备的 UUID 含有 MQTT 主题不允许的字符，无法控制；请在平台上重新登记该设备",
        "The device's UUID has characters that no MQTT topic may hold, so it can't be controlled; "
        "register the device anew on the platform",
    )
    property_name = "device_uuid"


class InvalidPreset(BridgeError):
    code = 400
    error = "invalid_preset"
    in_operation = True
    text = Text(
        "预设「{preset}」无法执行：{reason}；请在平台上修改后重试",
        "The preset '{preset}' can't be run: {reason}; correct it on the platform and try again",
    )
    property_name = "preset_key"


class AmbiguousPreset(InvalidPreset):
    text = Text(
        "有多个预设名为「{preset}」，请改用 preset_key：{presets}",
        "Several presets are called '{preset}'; use one of these preset keys: {presets}",
    )


class UnknownParameter(InvalidPreset):
    text = Text(
        "预设「{preset}」没有参数「{parameter}」，现有参数：{parameters}",
        "The preset '{preset}' has no parameter '{parameter}'; it has: {parameters}",
    )
    property_name = "parameters"


class PresetTooLong(InvalidPreset):
    text = Text(
        "预设「{preset}」需要 {seconds:g} 秒，超过允许的 {limit:g} 秒；请缩短步骤间隔",
        "The preset '{preset}' takes {seconds:g} s and at most {limit:g} s are allowed; "
        "shorten the delays between its steps",
    )


class DeviceOffline(BridgeError):
    code = 400
    error = "device_offline"
    in_operation = True
    text = Text(
        "设备「{device}」离线，预设未执行；请检查设备电源和网络后重试",
        "The device '{device}' is offline and the preset was not run; "
        "check its power and network, then try again",
    )


class DeviceNotFound(BridgeError):
    code = 404
    error = "device_not_found"
    in_operation = True
    text = Text(
        "设备不存在，请核对 device_uuid",
        "There is no such device; check device_uuid",
    )
    property_name = "device_uuid"


class SensorNotFound(BridgeError):
    code = 404
    error = "sensor_not_found"
    in_operation = True
    text = Text(
        "设备没有传感器「{sensor}」的数据，现有传感器：{sensors}",
        "The device has no data of a sensor '{sensor}'; its sensors are: {sensors}",
    )
    property_name = "sensor"


class PresetNotFound(BridgeError):
    code = 404
    error = "preset_not_found"
    in_operation = True
    text = Text(
        "设备没有预设「{preset}」，现有预设：{presets}",
        "The device has no preset '{preset}'; its presets are: {presets}",
    )
    property_name = "preset_key"
