-- wrk's side of benchmarks/serving/load.py: bodies in turn, and in an open loop at the times that a plan says.
--
-- A plan is a file of lines: "path", "header NAME VALUE", "body JSON", "at SECONDS". Without an "at" it is a closed
-- loop: a connection asks again as soon as it is answered. With them each request has a time, whatever the server
-- does: a free connection takes the next one and waits for it. wrk times a request from when it is sent; how much later
-- that was than it was due is counted here. The results go to a file as JSON.
local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long seconds; long nanoseconds; } efft_time;
  int clock_gettime(int clock, efft_time *time);
]])
local MONOTONIC = 1
local NEVER = 1e7  -- milliseconds: longer than any run

local function now()
  local time = ffi.new("efft_time")
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  thread:set("total", tonumber(os.getenv("EFFT_THREADS")))
  table.insert(threads, thread)
end

local requests, arrivals = {}, {}
local turn, first, last = 0, 1, 0
start, sent, good, finished, latest = 0, 0, 0, 0, 0
late = {}  -- requests by the whole milliseconds that they were sent too late
local window = math.huge

function init()
  local path, headers = "/", {}
  local position = 0
  for line in io.lines(os.getenv("EFFT_PLAN")) do
    local kind, rest = line:match("^(%a+) (.*)$")
    if kind == "path" then
      path = rest
    elseif kind == "header" then
      local name, value = rest:match("^(%S+) (.*)$")
      headers[name] = value
    elseif kind == "body" then
      table.insert(requests, wrk.format("POST", path, headers, rest))
    elseif kind == "window" then
      window = tonumber(rest)
    elseif kind == "at" then
      if position % total == number then
        table.insert(arrivals, {tonumber(rest), position})
      end
      position = position + 1
    end
  end
  if #arrivals == 0 then
    delay = nil
    turn = number * 7919  -- so that threads do not ask the same things at the same time
  end
  if not os.getenv("EFFT_COUNT") then
    response = nil
  end
end

-- One call for each connection that is free; what it returns wrk waits for, in milliseconds.
function delay()
  if start == 0 then
    start = now()
    first, sent, late = 1, 0, {}  -- wrk has asked for a request once, to look at it
  end
  last = last + 1
  local arrival = arrivals[last]
  if arrival == nil then
    return NEVER
  end
  return math.max(0, math.floor((start + arrival[1] - now()) * 1000 + 0.5))
end

function request()
  if #arrivals == 0 then
    turn = turn + 1
    return requests[turn % #requests + 1]
  end
  -- Timers end in the order of their times, so the next request is the next arrival, whichever connection sends it.
  local arrival = arrivals[first] or arrivals[#arrivals]
  first = first + 1
  sent = sent + 1
  local behind = math.max(0, math.floor((now() - start - arrival[1]) * 1000))
  late[behind] = (late[behind] or 0) + 1
  return requests[arrival[2] % #requests + 1]
end

function response(status)
  local moment = now() - start
  latest = moment
  if status == 200 then
    good = good + 1
    if moment <= window then
      finished = finished + 1
    end
  end
end

function done(summary, latency)
  local histogram, parts = {}, {}
  for i = 1, #latency do
    local microseconds, count = latency(i)
    table.insert(histogram, string.format("[%d,%d]", microseconds, count))
  end
  for _, thread in ipairs(threads) do
    local behind = {}
    for milliseconds, count in pairs(thread:get("late")) do
      table.insert(behind, string.format("[%d,%d]", milliseconds, count))
    end
    table.insert(parts, string.format('{"sent":%d,"good":%d,"finished":%d,"latest":%.6f,"late":[%s]}',
      thread:get("sent"), thread:get("good"), thread:get("finished"), thread:get("latest"), table.concat(behind, ",")))
  end
  local errors = summary.errors
  local file = io.open(os.getenv("EFFT_RESULT"), "w")
  file:write(string.format('{"requests":%d,"microseconds":%d,"status_errors":%d,"socket_errors":%d,"timeouts":%d,',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write, errors.timeout))
  file:write(string.format('"histogram":[%s],"threads":[%s]}', table.concat(histogram, ","), table.concat(parts, ",")))
  file:close()
end
