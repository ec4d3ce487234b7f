"""The service that most people would write: FastAPI, SQLAlchemy's ORM, PyMySQL, paho.

Our own short writing of that usual design: synchronous ORM queries inside the async handlers, two
for a reading, `pool_pre_ping`, INFO log lines, one uvicorn worker (`uvicorn[standard]`: uvloop and
httptools). The session is opened in the handler, not by `Depends(get_db)`: that is the faster of
the two usual ways, and the other hung here once more clients asked at a time than the pool holds.
Run with `uvicorn benchmarks.conventional:app`.
"""

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from fastapi import FastAPI, HTTPException
from paho.mqtt.client import MQTT_ERR_SUCCESS, Client
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import BaseModel
from sqlalchemy import JSON, URL, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
logger = logging.getLogger("conventional")

engine = create_engine(
    URL.create(
        "mysql+pymysql",
        os.environ["DB_USER"],
        os.environ["DB_PASSWORD"],
        os.environ["DB_HOST"],
        int(os.environ["DB_PORT"]),
        os.environ["DB_NAME"],
        query={"charset": "utf8mb4"},
    ),
    pool_pre_ping=True,
    pool_size=10,
    max_overflow=20,
)
SessionLocal = sessionmaker(bind=engine, autoflush=False)


class Base(DeclarativeBase):
    pass


class Device(Base):
    __tablename__ = "device_main"

    id: Mapped[int] = mapped_column(primary_key=True)
    uuid: Mapped[str]
    device_id: Mapped[str]
    product_id: Mapped[int | None]
    name: Mapped[str]
    device_secret: Mapped[str]
    device_status: Mapped[str]
    is_online: Mapped[bool]
    is_active: Mapped[bool]
    last_seen: Mapped[datetime | None]
    last_heartbeat: Mapped[datetime | None]
    location: Mapped[str | None]
    group_name: Mapped[str | None]
    room: Mapped[str | None]
    floor: Mapped[str | None]
    last_report_data: Mapped[Any] = mapped_column(JSON)
    device_sensor_config: Mapped[Any] = mapped_column(JSON)
    device_control_config: Mapped[Any] = mapped_column(JSON)
    device_settings: Mapped[Any] = mapped_column(JSON)


class Sensor(Base):
    __tablename__ = "device_sensors"

    id: Mapped[int] = mapped_column(primary_key=True)
    device_uuid: Mapped[str]
    sensor_name: Mapped[str]
    sensor_value: Mapped[str]
    sensor_unit: Mapped[str]
    sensor_type: Mapped[str | None]
    timestamp: Mapped[datetime]


class ControlRequest(BaseModel):
    device_uuid: str
    port_type: str
    port_id: int
    action: str
    value: int | None = None


SENSOR_NAMES = {"温度": "temperature", "湿度": "humidity", "雨水": "rain", "雨水级别": "rain_level"}

client = Client(CallbackAPIVersion.VERSION2)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    client.connect(os.environ["MQTT_BROKER"], int(os.environ["MQTT_PORT"]))
    client.loop_start()
    yield
    client.loop_stop()
    client.disconnect()


app = FastAPI(lifespan=lifespan)


def find_device(db: Session, device_uuid: str) -> Device:
    device = db.query(Device).filter(Device.uuid == device_uuid).first()
    if device is None:
        raise HTTPException(status_code=404, detail="设备不存在")
    return device


@app.get("/api/sensor-data")
async def sensor_data(device_uuid: str, sensor: str) -> dict[str, Any]:
    logger.info("查询传感器数据: device=%s, sensor=%s", device_uuid, sensor)
    sensor = SENSOR_NAMES.get(sensor, sensor)
    with SessionLocal() as db:
        device = find_device(db, device_uuid)
        reading = (
            db.query(Sensor)
            .filter(Sensor.device_uuid == device_uuid, Sensor.sensor_name == sensor)
            .first()
        )
    if reading is None:
        raise HTTPException(status_code=404, detail="传感器数据不存在")
    logger.info("查询成功: %s = %s", sensor, reading.sensor_value)
    return {
        "code": 200,
        "msg": "成功",
        "data": {
            "value": float(reading.sensor_value),
            "unit": reading.sensor_unit,
            "sensor_name": reading.sensor_name,
            "sensor_type": reading.sensor_type,
            "timestamp": reading.timestamp.isoformat(),
            "device_name": device.name,
            "last_seen": device.last_seen.isoformat() if device.last_seen else None,
        },
    }


@app.post("/api/control")
async def control(request: ControlRequest) -> dict[str, Any]:
    logger.info("控制设备: %s", request)
    with SessionLocal() as db:
        device = find_device(db, request.device_uuid)
    topic = f"devices/{device.uuid}/control"
    command = {"cmd": request.port_type, "device_id": request.port_id, "action": request.action}
    if client.publish(topic, json.dumps(command), qos=1).rc != MQTT_ERR_SUCCESS:
        raise HTTPException(status_code=500, detail="MQTT发布失败")
    logger.info("控制命令已发送: %s %s", topic, command)
    return {
        "code": 200,
        "msg": "成功",
        "data": {
            "result": "success",
            "topic": topic,
            "command": command,
            "device_name": device.name,
        },
    }
