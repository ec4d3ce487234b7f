"""The MQTT transport: a session at the broker, requests in, replies out."""

from .transport import MqttTransport

__all__ = ["MqttTransport"]
