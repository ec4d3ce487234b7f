"""A bare MQTT echo through aiomqtt, written as the library's guide shows it: no database, no work.

The standard event loop, the `messages` iterator, one awaited publish a message. The guide says
nothing of TCP_NODELAY; it is set because without it each QoS 1 exchange takes 44 ms (23 a second
here), and a limit that stands still measures nothing.
"""

import asyncio
import os
import socket
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


async def main() -> None:
    async with aiomqtt.Client(
        os.environ["MQTT_BROKER"],
        int(os.environ["MQTT_PORT"]),
        protocol=aiomqtt.ProtocolVersion.V5,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    ) as client:
        await client.subscribe(f"{os.environ['MQTT_TOPIC_PREFIX']}/request/#", qos=1)
        async for message in client.messages:
            asked: Any = message.properties
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = asked.CorrelationData
            await client.publish(
                asked.ResponseTopic,
                message.payload,
                qos=message.qos,
                properties=properties,
            )


if __name__ == "__main__":
    asyncio.run(main())
