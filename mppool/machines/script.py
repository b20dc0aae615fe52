"""What Redis computes, in one call for all pools of a machine. It reads one key, so any Redis can run it.

The key is a hash. `about` tells of the incarnation: which Redis has written all this, and when the time ends in which
nobody gets more than it has. `m:<machine>` tells what that machine may still be using, until when:

    {e: epoch, s: number of its last call, x: until (ms), p: processes, l: label, n: {pool: {c, w, h, k}}}
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
local fresh, label, processes, pools, leaves = said[7], said[8], said[9], said[10], said[11]
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
local about, others, own, order = nil, {}, nil, {}
for i = 1, #stored, 2 do
  local field = stored[i]
  if field == 'about' then
    about = cjson.decode(stored[i + 1])
  else
    local id, record = string.sub(field, 3), cjson.decode(stored[i + 1])
    if record.x <= now then redis.call('HDEL', key, field)
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
  about, others, own, order = {id = fresh, v = 0, i = instance, u = now + lease, y = why}, {}, nil, {}
end
if own and (own.e > epoch or (own.e == epoch and own.s >= number)) then
  return redis.error_reply('MPPOOL a later call of this machine was answered already')
end
about.v = about.v + 1
redis.call('HSET', key, 'about', cjson.encode(about))
-- An empty table would be encoded as an object.
local function answer(kept, machines, all, list)
  local head = cjson.encode({about.id, about.v, kept, kept > 0 and about.y or '', machines, all, 0})
  return string.sub(head, 1, -3) .. (#list > 0 and cjson.encode(list) or '[]') .. ']'
end

if leaves then
  redis.call('HDEL', key, 'm:' .. machine)
  return answer(0, #order, 0, {})
end
order[#order + 1] = machine
table.sort(order)
local count, place = #order, {}
for i, id in ipairs(order) do place[id] = i end

-- Integral max-min. When there are fewer slots than machines that want one, they take turns.
local function fill(cap, wants, name)
  local wanting, shares, left = {}, {}, cap
  for _, id in ipairs(order) do
    shares[id] = 0
    if wants[id] > 0 then wanting[#wanting + 1] = id end
  end
  if cap < #wanting then
    local turn = math.floor(now / (2 * lease))
    for i = 1, cap do shares[wanting[(turn + i) % #wanting + 1]] = 1 end
    return shares
  end
  table.sort(wanting, function(a, b)
    if wants[a] ~= wants[b] then return wants[a] < wants[b] end
    return a < b
  end)
  for i, id in ipairs(wanting) do
    shares[id] = math.min(wants[id], math.floor(left / (#wanting - i + 1)))
    left = left - shares[id]
  end
  local each, rest = math.floor(left / count), left % count
  for i, id in ipairs(order) do
    shares[id] = shares[id] + each + (i <= rest and 1 or 0)
  end
  return shares
end

local kept = math.max(0, about.u - now)
local record = {e = epoch, s = number, x = now + lease, p = processes, l = label, n = {}}
local answers, all = {}, processes
for _, id in ipairs(order) do
  if id ~= machine then all = all + others[id].p end
end
for at, pool in ipairs(pools) do
  local name, cap, wanted, has, limit = pool[1], pool[2], pool[3], pool[4], pool[5]
  local wants, taken, sum, least = {[machine] = wanted}, 0, wanted, cap
  for id, other in pairs(others) do
    local its = other.n[name]
    wants[id] = its and its.w or 0
    if its then
      taken, sum = taken + its.c, sum + its.w
      if its.k >= 0 and (least < 0 or its.k < least) then least = its.k end
    end
  end
  local share
  if cap == -2 then share = limit -- nobody knows the cap here yet: what is open stays
  elseif least < 0 then share = -1
  elseif kept > 0 then share = math.min(limit, least)
  else share = math.max(0, math.min(fill(least, wants, name)[machine], least - taken)) end
  local committed = math.max(share, limit, has)
  record.n[name] = {c = committed, w = wanted, h = has, k = cap}
  answers[at] = {name, share, least, taken + committed, sum}
end
redis.call('HSET', key, 'm:' .. machine, cjson.encode(record))
redis.call('PEXPIRE', key, 2592000000) -- 30 days: a manager that nobody uses any more leaves nothing behind
return answer(kept, count, all, answers)
"""
