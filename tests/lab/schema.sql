-- The platform's tables, as its main backend makes them. We only read them.
-- Loads in MySQL 5.7, MySQL 8 and MariaDB.

CREATE TABLE device_products (
    id                  INT NOT NULL AUTO_INCREMENT,
    product_code        VARCHAR(50) NOT NULL,
    name                VARCHAR(100) NOT NULL,
    description         TEXT NULL,
    category            VARCHAR(50) NULL,
    sensor_types        JSON NULL,
    control_ports       JSON NULL,
    device_capabilities JSON NULL,
    manufacturer        VARCHAR(100) NULL,
    version             VARCHAR(20) NULL,
    is_active           TINYINT(1) NOT NULL DEFAULT 1,
    total_devices       INT NOT NULL DEFAULT 0,
    created_at          DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at          DATETIME NULL,
    PRIMARY KEY (id),
    UNIQUE KEY uq_device_products_product_code (product_code)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;

CREATE TABLE device_main (
    id                    INT NOT NULL AUTO_INCREMENT,
    uuid                  VARCHAR(36) NOT NULL,
    device_id             VARCHAR(50) NOT NULL,
    product_id            INT NULL,
    user_id               INT NULL,
    school_id             INT NULL,
    name                  VARCHAR(100) NOT NULL,
    description           TEXT NULL,
    device_secret         VARCHAR(255) NOT NULL,
    device_status         VARCHAR(20) NOT NULL DEFAULT 'pending',
    is_online             TINYINT(1) NOT NULL DEFAULT 0,
    is_active             TINYINT(1) NOT NULL DEFAULT 1,
    last_seen             DATETIME NULL,
    last_heartbeat        DATETIME NULL,
    ip_address            VARCHAR(45) NULL,
    mac_address           VARCHAR(17) NULL,
    firmware_version      VARCHAR(50) NULL,
    hardware_version      VARCHAR(50) NULL,
    location              VARCHAR(200) NULL,
    group_name            VARCHAR(100) NULL,
    room                  VARCHAR(100) NULL,
    floor                 VARCHAR(20) NULL,
    last_report_data      JSON NULL,
    device_sensor_config  JSON NULL,
    device_control_config JSON NULL,
    device_settings       JSON NULL,
    error_count           INT NOT NULL DEFAULT 0,
    created_at            DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at            DATETIME NULL,
    PRIMARY KEY (id),
    UNIQUE KEY uq_device_main_uuid (uuid),
    UNIQUE KEY uq_device_main_device_id (device_id),
    KEY ix_device_main_product_id (product_id),
    KEY ix_device_main_user_id (user_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;

CREATE TABLE device_sensors (
    id           INT NOT NULL AUTO_INCREMENT,
    device_uuid  VARCHAR(36) NOT NULL,
    sensor_name  VARCHAR(50) NOT NULL,
    sensor_value VARCHAR(255) NULL,
    sensor_unit  VARCHAR(20) NULL,
    sensor_type  VARCHAR(50) NULL,
    `timestamp`  DATETIME NULL,
    created_at   DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at   DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
    PRIMARY KEY (id),
    UNIQUE KEY uq_device_sensors_device_sensor (device_uuid, sensor_name),
    KEY ix_device_sensors_timestamp (`timestamp`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;
