"""What Redis computes, in one call for all pools of a machine. It reads one key, so any Redis can run it.

The key is a hash. `about` tells of the incarnation: which Redis has written all this, and when the time ends in which
nobody gets more than it has. `m:<machine>` tells what that machine may still be using, until when:

    {e: epoch, s: number of its last call, x: until (ms), p: processes, l: label, o: epochs, n: {pool: {c, w, h, k}}}
    c: committed, the most of: its share, what it may open by itself, what it has.  w: wants.  h: has.  k: cap

A new incarnation begins where `about` is missing (new, or flushed), was written by another Redis (failed over,
restarted), or is older than what a machine has seen whose lease is in force (restored). What machines had said before is dropped. For one lease
each machine keeps what it says it has, and nobody gets more: after that, a machine that has not called holds nothing.

A share is bounded by what the others leave of the cap, and is otherwise max-min over what the machines want: at
least one for each, or in turns where there are more machines than slots; what nobody wants is spread evenly.
"""

from __future__ import annotations

SCRIPT = r"""
local said = cjson.decode(ARGV[1])
local machine, epoch, number, lease, seen_id, seen_version = said[1], said[2], said[3], said[4], said[5], said[6]
local fresh, label, processes, pools, leaves, epochs = said[7], said[8], said[9], said[10], said[11], said[12] or {}
local key = KEYS[1]

local now, instance = tonumber(ARGV[2]), ARGV[3]
if not now then
  local info = redis.call('INFO', 'server')
  local version = tonumber(string.match(info, 'redis_version:(%d+)') or '0')
  -- Since 5 a script's writes are replicated as they were made, whatever the clock said.
  if version < 5 then return redis.error_reply('MPPOOL this Redis is older than version 5') end
  local replication = redis.call('INFO', 'replication')
  instance = (string.match(info, 'run_id:(%w+)') or '') .. (string.match(replication, 'master_replid:(%w+)') or '')
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What there is, without what has expired.
local stored = redis.call('HGETALL', key)
local about, others, own, order, stale, expired = nil, {}, nil, {}, {}, {}
for i = 1, #stored, 2 do
  local field = stored[i]
  if field == 'about' then
    about = cjson.decode(stored[i + 1])
  else
    local id, record = string.sub(field, 3), cmsgpack.unpack(stored[i + 1])
    if record.x <= now then stale[#stale + 1] = field
      if record.o and #record.o > 0 then expired[#expired + 1] = {id, record.l, record.o, record.x} end
    elseif id == machine then own = record
    else others[id] = record; order[#order + 1] = id end
  end
end

-- Which incarnation this is.
local why
if not about then why = 'it was empty'
elseif about.i ~= instance then why = 'another Redis answers, or it was restarted'
elseif about.id == seen_id and about.v < seen_version then why = 'it has forgotten what it had answered'
elseif seen_id ~= '' and about.id ~= seen_id and about.u <= now then why = 'it answers from an older state' end
if why then
  redis.call('DEL', key)
  about, others, own, order, expired = {id = fresh, v = 0, i = instance, u = now + lease, y = why}, {}, nil, {}, {}
end
if own and (own.e > epoch or (own.e == epoch and own.s >= number)) then
  return redis.error_reply('MPPOOL a later call of this machine was answered already')
end
about.v = about.v + 1
for _, field in ipairs(stale) do redis.call('HDEL', key, field) end
-- Machines whose leases have run out lately: others may end their sessions at the database.
for _, one in ipairs(about.f or {}) do
  if #expired < 16 and one[4] > now - 4 * lease then expired[#expired + 1] = one end
end
about.f = #expired > 0 and expired or nil
local ended = {}
for _, one in ipairs(expired) do
  if one[1] ~= machine then ended[#ended + 1] = {one[1], one[2], one[3], now - one[4]} end
end
redis.call('HSET', key, 'about', cjson.encode(about))
-- An empty table would be encoded as an object.
local function answer(kept, machines, all, list)
  local head = cjson.encode({about.id, about.v, kept, kept > 0 and about.y or '', machines, all, 0})
  local function encoded(items) return #items > 0 and cjson.encode(items) or '[]' end
  return string.sub(head, 1, -3) .. encoded(list) .. ',' .. encoded(ended) .. ']'
end

if leaves then
  redis.call('HDEL', key, 'm:' .. machine)
  return answer(0, #order, 0, {})
end
local count, first = #order + 1, 0 -- all machines, and how many come before this one
for i = 1, #order do
  if order[i] < machine then first = first + 1 end
end

-- This machine's part of an integral max-min, without sorting: there may be a thousand machines, and wants are small.
-- wants: of all. before: of those that come before this one.
local function part(cap, wanted, wants, before)
  local wanting, sum, tally, most = 0, 0, {}, 0
  for i = 1, count do
    local w = math.min(wants[i], cap)
    if w > 0 then
      wanting, sum, tally[w] = wanting + 1, sum + w, (tally[w] or 0) + 1
      if w > most then most = w end
    end
  end
  if sum <= cap then -- everybody has what it wants, and what is left is spread
    local left = cap - sum
    return wanted + math.floor(left / count) + (first < left % count and 1 or 0)
  end
  if wanted == 0 then return 0 end
  local rank = 0 -- of this machine among those that still want more
  if cap < wanting then -- they take turns
    for i = 1, #before do
      if before[i] > 0 then rank = rank + 1 end
    end
    local turn = math.floor(now / (2 * lease)) * cap
    return (rank - turn) % wanting < cap and 1 or 0
  end
  local level, left, above = 0, cap, wanting
  while left >= above do -- one more for each that wants more
    left, level = left - above, level + 1
    above = above - (tally[level] or 0)
  end
  if wanted <= level then return wanted end
  for i = 1, #before do
    if before[i] > level then rank = rank + 1 end
  end
  return level + (rank < left and 1 or 0)
end

local kept = math.max(0, about.u - now)
local record = {e = epoch, s = number, x = now + lease, p = processes, l = label, n = {}, o = epochs}
local answers, all = {}, processes
for i = 1, #order do all = all + others[order[i]].p end
for at, pool in ipairs(pools) do
  local name, cap, wanted, has, limit = pool[1], pool[2], pool[3], pool[4], pool[5]
  local wants, before, taken, sum, least = {}, {}, 0, wanted, cap
  for i = 1, #order do
    local id = order[i]
    local its = others[id].n[name]
    wants[i] = its and its.w or 0
    if id < machine then before[#before + 1] = wants[i] end
    if its then
      taken, sum = taken + its.c, sum + its.w
      if its.k >= 0 and (least < 0 or its.k < least) then least = its.k end
    end
  end
  wants[count] = wanted
  local share
  if cap == -2 then share = limit -- nobody knows the cap here yet: what is open stays
  elseif least < 0 then share = -1
  elseif kept > 0 then share = math.min(limit, least)
  else share = math.max(0, math.min(part(least, math.min(wanted, least), wants, before), least - taken)) end
  local committed = math.max(share, limit, has)
  record.n[name] = {c = committed, w = wanted, h = has, k = cap}
  answers[at] = {name, share, least, taken + committed, sum}
end
redis.call('HSET', key, 'm:' .. machine, cmsgpack.pack(record))
redis.call('PEXPIRE', key, 2592000000) -- 30 days: a manager that nobody uses any more leaves nothing behind
return answer(kept, count, all, answers)
"""
