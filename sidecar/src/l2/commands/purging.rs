//! Purges as Redis is told of them, and who hears of them.

use std::{sync::LazyLock, time::Duration};

use larder_policy::PurgeName;
use redis::{RedisResult, Script};

use super::super::{
    connection::Connection,
    message::{Origin, trailer},
};
use crate::barriers::MAX_BARRIERS;

/// A hash of barriers that nobody touches for this long goes, and what was stored under it is stale.
pub(super) const KEEP_BARRIERS: Duration = Duration::from_secs(7 * 24 * 3600);

/// A purge as Redis is told of it.
#[derive(Clone, Copy)]
pub(in crate::l2) struct PurgeCommand<'a> {
    /// Subscription that waits until every pod has applied the purge; 0 if none does.
    pub(in crate::l2) asker: u64,
    /// The version of the policy whose names these are.
    pub(in crate::l2) version: PurgeName,
    /// Without any, it is a write for which that version names nothing.
    pub(in crate::l2) names: &'a [PurgeName],
    /// Names of other Redis that are told of it, too ([`PurgeName::told`]).
    pub(in crate::l2) elsewhere: &'a [PurgeName],
    /// Identity of the purge, if it may be heard of in other ways, too.
    pub(in crate::l2) origin: Option<Origin>,
    /// Redis remembers the identity. A purge with it that no pod waits for is not ordered again.
    pub(in crate::l2) is_relayed: bool,
}

/// Raises barriers, orders them and tells every pod, at once: on the names, and on each version of the policy but the one whose
/// names they are. ARGV: generation if there is none, most barriers, seconds to keep them, the asker or 0, the version, the origin or
/// nothing, the number of parts of the trailer, these, then the names.
/// Without any name nothing is ordered. The message is that of [`PurgeMessage`](super::super::message::PurgeMessage). A pod that asks waits
/// until others have heard of this very purge, so only one that no pod waits for is looked up among those that were ordered.
pub(super) static PURGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local versions = redis.call('HGET', KEYS[1], 'v') or ''
        local trailer = tonumber(ARGV[7])
        local names = {}
        for i = 8 + trailer, #ARGV do names[#names + 1] = ARGV[i] end
        for hex in string.gmatch(versions, '(%x+)=') do
          local name = string.gsub(hex, '%x%x', function(digits) return string.char(tonumber(digits, 16)) end)
          if #name == 16 and name ~= ARGV[5] then names[#names + 1] = name end
        end
        if #names == 0 then return end
        redis.call('HSETNX', KEYS[1], 'g', ARGV[1])
        local passed = ARGV[6] ~= '' and (redis.call('HGET', KEYS[1], 'p') or '')
        if passed and ARGV[4] == '0' then
          local order = string.match(passed, ' ' .. ARGV[6] .. '=(%d+)')
          if order then return {redis.call('HGET', KEYS[1], 'g'), order, 0} end
        end
        local order = redis.call('HINCRBY', KEYS[1], 's', 1)
        for _, name in ipairs(names) do redis.call('HSET', KEYS[1], name, order) end
        local generation = redis.call('HGET', KEYS[1], 'g')
        if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[2]) then
          redis.call('DEL', KEYS[1])
          redis.call('HSET', KEYS[1], 'g', generation, 's', order, 'f', order, 'v', versions)
        end
        if passed then
          passed = ' ' .. ARGV[6] .. '=' .. order .. passed
          if #passed > 8192 then passed = string.match(string.sub(passed, 1, 8192), '^(.*) ') end
          redis.call('HSET', KEYS[1], 'p', passed)
        end
        redis.call('EXPIRE', KEYS[1], ARGV[3])
        local message = generation .. ' ' .. order .. ' ' .. ARGV[4] .. ' '
        message = message .. table.concat(names) .. table.concat(ARGV, '', 8, 7 + trailer)
        return {generation, order, redis.call('PUBLISH', KEYS[1], message)}
        ",
    )
});

/// Raises barriers; returns generation, order, and how many pods were told: 0 if another pod has passed it on before. They acknowledge
/// it to the asker. Without names, it raises those on other versions of the policy, and returns `None` if there are none.
pub(in crate::l2) async fn purge(
    connection: &mut Connection,
    barriers: &str,
    purge: PurgeCommand<'_>,
) -> RedisResult<Option<(u64, u64, usize)>> {
    let PurgeCommand { asker, version, names, elsewhere, origin, is_relayed } = purge;
    let trailer = trailer(origin, elsewhere);
    let mut call = PURGE.prepare_invoke();
    call.key(barriers)
        .arg(connection.mark().new_generation())
        .arg(MAX_BARRIERS)
        .arg(KEEP_BARRIERS.as_secs())
        .arg(asker)
        .arg(&version.as_bytes()[..])
        .arg(origin.filter(|_| is_relayed).map_or_else(String::new, |origin| origin.to_string()))
        .arg(trailer.len());
    trailer.iter().chain(names.iter().map(PurgeName::as_bytes)).for_each(|bytes| {
        call.arg(&bytes[..]);
    });
    call.invoke_async(connection.counting()).await
}

/// Begins a new generation, which makes everything stale, and tells every pod; unless one has been begun already. ARGV: the
/// generation, seconds to keep it, the generation that it follows.
static PURGE_EVERYTHING: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local generation = redis.call('HGET', KEYS[1], 'g')
        if generation and generation ~= ARGV[3] then return end
        redis.call('DEL', KEYS[1])
        redis.call('HSET', KEYS[1], 'g', ARGV[1])
        redis.call('EXPIRE', KEYS[1], ARGV[2])
        redis.call('PUBLISH', KEYS[1], ARGV[1] .. ' 0 0 ')
        ",
    )
});

/// Ends a generation, and with it everything that was stored in it or before.
pub(in crate::l2) async fn purge_everything(
    connection: &mut Connection,
    barriers: &str,
    generation: u64,
) -> RedisResult<()> {
    let mut call = PURGE_EVERYTHING.prepare_invoke();
    call.key(barriers).arg(connection.mark().new_generation()).arg(KEEP_BARRIERS.as_secs()).arg(generation);
    call.invoke_async(connection.counting()).await
}

/// The channel of those that have left for another Redis, and hear of purges here all the same.
pub(in crate::l2) fn left_channel(barriers: &str) -> String {
    format!("{barriers}:left")
}

/// Returns true if every pod that hears of purges here has left for another Redis.
pub(in crate::l2) async fn have_all_left(connection: &mut Connection, barriers: &str) -> RedisResult<bool> {
    let left = left_channel(barriers);
    let mut numbers = redis::cmd("PUBSUB");
    numbers.arg("NUMSUB").arg(barriers).arg(&left);
    let (_, all, _, left): (String, usize, String, usize) =
        numbers.query_async(connection.counting()).await?;
    Ok(all == left)
}
