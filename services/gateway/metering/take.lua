-- Takes credits once per usage id and keeps the usage event until Kafka has it.
-- KEYS: 1 credits used by the account in the period, 2 pending usage events (id -> encoded event)
-- ARGV: 1 usage id, 2 event, 3 credits, 4 allowance (-1: none), 5 used so far by the ledger (-1: not asked), 6 seconds to keep 1
-- Returns {1, used} taken (or taken before: a repeat changes nothing), {0, used} refused, {-1, 0} used is not known: ask the ledger.
local used = tonumber(redis.call('GET', KEYS[1]))
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return {1, used or 0} end
if not used then
  used = tonumber(ARGV[5])
  if used < 0 then return {-1, 0} end
end
local after, allowance = used + tonumber(ARGV[3]), tonumber(ARGV[4])
if allowance >= 0 and after > allowance then return {0, used} end
redis.call('SET', KEYS[1], after, 'EX', ARGV[6])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return {1, after}
