"""The MQTT transport; `transport.py` tells a request's way."""

from .transport import MqttTransport

__all__ = ["MqttTransport"]
