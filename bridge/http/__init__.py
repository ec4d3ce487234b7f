"""The HTTP transport: an aiohttp server that carries the same operations as MQTT."""
