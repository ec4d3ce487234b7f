"""Errors about devices, ports, presets and sensors; `bridge/errors.py` draws the whole tree."""

from ..errors import BridgeError, MqttUnavailable, Text


class InvalidControl(BridgeError, code=400, error="invalid_control", in_operation=True):
    pass


class UnknownPortType(InvalidControl):
    text = Text(
        "未知的端口类型「{port_type}」，可用：led、relay、servo、pwm",
        "Unknown port type '{port_type}'; use led, relay, servo or pwm",
    )
    property_name = "port_type"


class UnknownAction(InvalidControl):
    text = Text(
        "端口类型 {port_type} 不支持动作「{action}」，可用：{actions}",
        "Port type {port_type} has no action '{action}'; use {actions}",
    )
    property_name = "action"


class ValueMissing(InvalidControl):
    text = Text(
        "{port_type} 的 set 动作需要 value（0–{maximum}）",
        "Action set of port type {port_type} needs a value from 0 to {maximum}",
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
        "Several ports are named '{port}'; choose one by port_type and port_id: {ports}",
    )
    property_name = "port"


class SomeDisabled(InvalidControl):
    text = Text(
        "有 {port_type} 端口已停用，不能一次控制全部（port_id 0）；请逐个控制：{ports}",
        "A port of type {port_type} is disabled, so port_id 0 (all) is not allowed; "
        "control them one by one: {ports}",
    )
    property_name = "port_id"


class UnreadablePorts(InvalidControl):
    text = Text(
        "设备的端口配置（control_ports 或 device_control_config）无法读取，不能控制；"
        "请在平台上重新保存端口配置",
        "The device's port configuration (control_ports or device_control_config) can't be read, "
        "so the device can't be controlled; save the configuration again on the platform",
    )
    property_name = "device_uuid"


class UncontrollableDevice(InvalidControl):
    text = Text(
        "设备的 UUID 含有 MQTT 主题不允许的字符，无法控制；请在平台上重新登记该设备",
        "The device's UUID has characters that are not allowed in MQTT topics, so the device can't "
        "be controlled; register it again on the platform",
    )
    property_name = "device_uuid"


class InvalidPreset(BridgeError, code=400, error="invalid_preset", in_operation=True):
    text = Text(
        "预设「{preset}」无法执行：{reason}；请在平台上修改后重试",
        "The preset '{preset}' can't be run: {reason}; correct it on the platform and try again",
    )
    property_name = "preset_key"


class AmbiguousPreset(InvalidPreset):
    text = Text(
        "有多个预设名为「{preset}」，请改用 preset_key：{presets}",
        "Several presets are named '{preset}'; use one of these preset keys: {presets}",
    )


class UnknownParameter(InvalidPreset):
    text = Text(
        "预设「{preset}」没有参数「{parameter}」，现有参数：{parameters}",
        "The preset '{preset}' has no parameter '{parameter}'; it has: {parameters}",
    )
    property_name = "parameters"


class DisabledPort(InvalidPreset):
    text = Text(
        "预设「{preset}」会控制已停用的端口 {port}，整个预设未执行；请启用该端口或修改预设",
        "The preset '{preset}' would control the disabled port {port}, and none of it was run; "
        "enable the port or change the preset",
    )


class PresetTooLong(InvalidPreset):
    text = Text(
        "预设「{preset}」需要 {seconds:g} 秒，超过允许的 {limit:g} 秒；请缩短步骤间隔",
        "The preset '{preset}' takes {seconds:g} s, longer than the limit of {limit:g} s; "
        "shorten the delays between its steps",
    )


class DeviceOffline(BridgeError, code=400, error="device_offline", in_operation=True):
    text = Text(
        "设备「{device}」离线，预设未执行；请检查设备电源和网络后重试",
        "The device '{device}' is offline and the preset was not run; "
        "check its power and network, then try again",
    )


class DeviceNotFound(BridgeError, code=404, error="device_not_found", in_operation=True):
    text = Text(
        "设备不存在，请核对 device_uuid",
        "This device does not exist; check device_uuid",
    )
    property_name = "device_uuid"


class SensorNotFound(BridgeError, code=404, error="sensor_not_found", in_operation=True):
    text = Text(
        "设备没有传感器「{sensor}」的数据，现有传感器：{sensors}",
        "The device has no data from a sensor '{sensor}'; its sensors are: {sensors}",
    )
    property_name = "sensor"


class AmbiguousSensor(BridgeError, code=400, error="ambiguous_sensor", in_operation=True):
    text = Text(
        "有多个传感器名为「{sensor}」，请改用 sensor_name：{sensors}",
        "Several sensors are named '{sensor}'; use one of these sensor names: {sensors}",
    )
    property_name = "sensor"


class PresetNotFound(BridgeError, code=404, error="preset_not_found", in_operation=True):
    text = Text(
        "设备没有预设「{preset}」，现有预设：{presets}",
        "The device has no preset '{preset}'; its presets are: {presets}",
    )
    property_name = "preset_key"


class DeviceUnreachable(BridgeError, code=409, error="device_unreachable", in_operation=True):
    text = Text(
        "设备「{device}」没有连接到 MQTT 服务器，命令没有送达；请检查设备电源和网络后重试",
        "The device '{device}' is not connected, and no board received the command; "
        "check its power and network, then try again",
    )


class DeviceBusy(BridgeError, code=409, error="device_busy", in_operation=True):
    text = Text(
        "设备「{device}」正在执行另一个序列预设；请等它结束后重试",
        "Another sequence is running on the device '{device}'; try again when it has ended",
    )


class PublishRefused(MqttUnavailable):
    text = Text(
        "MQTT 服务器拒绝了该命令（原因码 0x{reason:02X}），命令没有送达；"
        "请管理员检查桥接服务账号对 {topic} 的发布权限",
        "The MQTT broker rejected the command (reason code 0x{reason:02X}), and no board received "
        "it; ask the administrator whether the bridge's broker user may publish to {topic}",
    )
