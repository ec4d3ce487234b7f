"""An MQTT request/reply bridge between plugins and ESP32 boards."""

__version__ = "1.1.0"
