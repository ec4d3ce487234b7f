-- wrk script: asks for devices in turn, and checks every answer while it measures.
-- Arguments: LOAD (sensor, control, batch), DEVICES, FIRST device, CHECK (reply, constant),
-- CONNECTIONS, SENSOR (the name to ask by), PARITY (0, 1: only even or odd devices; -1: all).
-- device_uuid() and temperature() repeat the formulas of benchmarks/dataset.py.

local BATCH = 100
local STRIDE = 7919 -- a prime: neighbours in time are not neighbours in the index
local JSON = { ["Content-Type"] = "application/json" }

-- A server whose event loop is blocked accepts late: connections that ask at once keep the others
-- out, for the better part of a second. So all connect first, and ask when all are there. wrk's
-- clock for a request starts when it is sent; the rate is corrected for the pause below.
local CONNECT_PAUSE_MS = 300

local threads = {}

local function device_uuid(number)
  return string.format("%08x-0000-4000-8000-%012x", number * 2654435761 % 4294967296, number)
end

local function temperature(number)
  return (10 + number % 25) .. "." .. (1 + number % 9)
end

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  load_kind, devices, first, check = args[1], tonumber(args[2]), tonumber(args[3]), args[4]
  connecting = tonumber(args[5])
  sensor, parity = args[6], tonumber(args[7])
  encoded_sensor = sensor:gsub("[^%w_]", function(byte)
    return string.format("%%%02X", byte:byte())
  end)
  asked, right, controls, wrong = 0, 0, 0, 0
end

-- Asked by wrk before each request.
function delay()
  if connecting > 0 then
    connecting = connecting - 1
    return CONNECT_PAUSE_MS
  end
  return 0
end

local function device_at(number)
  local index = first + number * STRIDE
  if parity < 0 then
    return index % devices
  end
  return index % (devices / 2) * 2 + parity
end

local function reading_request(number)
  return wrk.format(
    "GET",
    "/api/sensor-data?device_uuid=" .. device_uuid(device_at(number))
      .. "&sensor=" .. encoded_sensor
  )
end

local function control_request(number)
  return wrk.format(
    "POST",
    "/api/control",
    JSON,
    '{"device_uuid":"' .. device_uuid(device_at(number))
      .. '","port_type":"led","port_id":1,"action":"' .. (number % 2 == 0 and "on" or "off") .. '"}'
  )
end

local function batch_request(number)
  local items = {}
  for i = 0, BATCH - 1 do
    items[#items + 1] = '{"operation":"sensor-data","device_uuid":"'
      .. device_uuid(device_at(number * BATCH + i)) .. '","sensor":"' .. sensor .. '"}'
  end
  return wrk.format("POST", "/api/batch", JSON,
    '{"requests":[' .. table.concat(items, ",") .. "]}")
end

function request()
  local number = asked
  asked = asked + 1
  if load_kind == "control" then
    return control_request(number)
  elseif load_kind == "batch" then
    return batch_request(number)
  end
  return reading_request(number)
end

-- wrk does not say which request an answer belongs to, so an answer is held against the device
-- that it names itself.
local function reading_is_right(body)
  local name = body:match('"device_name":"bench%-(%d+)"')
  return name ~= nil
    and body:find('"value":' .. temperature(tonumber(name)) .. "[,}]") ~= nil
end

local function batch_is_right(body)
  local readings = 0
  for item in body:gmatch('"data":(%b{})') do
    if reading_is_right(item) then
      readings = readings + 1
    end
  end
  return readings == BATCH
end

local function is_right(status, body)
  if status ~= 200 or not body:find('"code":200', 1, true) then
    return false
  elseif check == "constant" then
    return true
  elseif load_kind == "batch" then
    -- The outer "data" holds the items.
    return batch_is_right(body:sub((body:find('"results":', 1, true)) or 1))
  elseif body:find('"result":"success"', 1, true) then
    controls = controls + 1
    return load_kind == "control"
  end
  return load_kind == "sensor" and reading_is_right(body)
end

function response(status, _, body)
  if is_right(status, body) then
    right = right + 1
  else
    if wrong == 0 then
      io.stderr:write("first wrong answer (status " .. status .. "): " .. body:sub(1, 600) .. "\n")
    end
    wrong = wrong + 1
  end
end

function done(summary, latency)
  local total = { right = 0, controls = 0, wrong = 0 }
  for _, thread in ipairs(threads) do
    for name, sum in pairs(total) do
      total[name] = sum + thread:get(name)
    end
  end
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write
    + summary.errors.timeout
  io.write(string.format(
    '{"per_second":%.1f,"p50_ms":%.3f,"p99_ms":%.3f,"measured":%d,"right":%d,"controls":%d,'
      .. '"wrong":%d,"lost":%d}\n',
    summary.requests / (summary.duration / 1e6 - CONNECT_PAUSE_MS / 1e3),
    latency:percentile(50) / 1000,
    latency:percentile(99) / 1000,
    summary.requests,
    total.right,
    total.controls,
    total.wrong,
    failed
  ))
end
