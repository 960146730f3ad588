//! Values of routes that set none themselves.
//!
//! # Guarantees
//! - A field of a route replaces that of the defaults. `key`, `key.query` and `bypass` are filled in field by field, and `key.headers`,
//!   `key.cookies` and the maps of `bypass` are added to: a route that adds a header to its key would otherwise share responses that the
//!   headers of the default key tell apart. Other lists and objects replace as a whole. An empty list or map takes none.
//! - Of fields that exclude or stand for each other (`ttl` and `maxTTL`; `allow` and `ignore`; `grace`, `staleWhileRevalidate` and
//!   `staleIfError`), those of the route replace those of the defaults. A lifetime of the route is that of successes, and bounds
//!   that of other statuses; it takes no `ttlFrom`; and a `notFoundTTL` of the route is about 404s in place of `statuses`.
//! - What does not apply to a route is not taken: nothing where the route passes, `key.body` without POST, `notFoundTTL` without
//!   `from`, and what is about a `ttl` without one.
//! - Routes that were filled in once are complete: sidecars that know no defaults read them as they are meant.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Bypass, CacheSpec, CacheableMethod, ClientDirectives, Despite, EarlyRefresh, ForwardHeaders, KeyQuery,
    KeySpec, LastKnownGood, RouteSpec, SetCookie, StatusSpec, TagsFrom, TtlFrom, rules,
};
use crate::{Duration, StatusPattern};

/// Objects of which a route may take a part.
const FILLED_IN: [&str; 3] = ["key", "key.query", "bypass"];
/// Lists and maps to which a route adds its own.
const ADDED_TO: [&str; 5] =
    ["key.headers", "key.cookies", "bypass.query", "bypass.headers", "bypass.cookies"];
/// Fields that `grace` stands for.
const OF_GRACE: [&str; 2] = ["staleWhileRevalidate", "staleIfError"];

/// Values of fields that a route leaves out. A field of the route replaces the one here; `key`, `key.query` and `bypass` are filled in field by
/// field. A route adds to `key.headers`, `key.cookies` and the maps of `bypass`, and replaces other lists; an empty one takes none. A
/// route with `pass: true` takes none, and no route takes what does not apply to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_defaults()))]
pub struct RouteDefaults {
    /// Freshness lifetime of responses, on routes without `ttl` and `maxTTL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,

    /// Maximum time that a response is fresh, on routes without `ttl` and `maxTTL`.
    #[serde(default, rename = "maxTTL", skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Duration>,

    /// Statuses whose responses are stored, on routes without `statuses`: where the route has a `ttl` or `maxTTL` of its own,
    /// that replaces their `ttl` if they are successes or it is shorter; and without 404 and `4xx` where it has `notFoundTTL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub statuses: Option<Vec<StatusSpec>>,

    /// Time after its expiry that a stale response is served while a new one is fetched, on routes without `staleWhileRevalidate` and
    /// `grace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Duration>,

    /// Time after its expiry that a stale response is served when the application fails, on routes without `staleIfError` and `grace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Duration>,

    /// `staleWhileRevalidate` and `staleIfError` in one, each on routes that set neither it nor `grace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,

    /// Restrictions in response headers that are overridden, on routes without `storeDespite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "atomic"))]
    pub store_despite: Option<Vec<Despite>>,

    /// Treatment of responses that set a cookie, on routes without `setCookie`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SetCookie")]
    pub set_cookie: Option<SetCookie>,

    /// Treatment of `Cache-Control` in requests, on routes without `clientDirectives`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClientDirectives")]
    pub client_directives: Option<ClientDirectives>,

    /// Requests that are neither looked up nor stored. Routes add to `query`, `headers` and `cookies`; the value of a name that both have
    /// is the route's, and an empty map takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<Bypass>,

    /// Parts of the request that distinguish responses: each field on routes whose `key` lacks it. Routes add to `headers` and `cookies`; an
    /// empty list takes none. `query.allow` and `query.ignore` of a route replace both. `body` is for routes with POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySpec>,

    /// Request headers that are forwarded to the application when its response may be stored, on routes without `forwardHeaders`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ForwardHeaders")]
    pub forward_headers: Option<ForwardHeaders>,

    /// Further tags from headers of the response, on routes without `tagsFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags_from: Option<TagsFrom>,

    /// Place of the TTL in responses, on routes that take the `ttl` from here and have no `ttlFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_from: Option<TtlFrom>,

    /// Maximum TTL jitter in percent, on routes with a `ttl` and without `ttlJitterPercent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub ttl_jitter_percent: Option<u8>,

    /// Maximum time that a pod serves a response from its own memory before it checks L2, on routes without `l1TTL`.
    #[serde(default, rename = "l1TTL", skip_serializing_if = "Option::is_none")]
    pub l1_ttl: Option<Duration>,

    /// Maximum time that a response stays in L2, on routes without `l2TTL`.
    #[serde(default, rename = "l2TTL", skip_serializing_if = "Option::is_none")]
    pub l2_ttl: Option<Duration>,

    /// Time that a "not found" from every source is cached, on routes with `from` and without `notFoundTTL`, unless `statuses` covers 404.
    #[serde(default, rename = "notFoundTTL", skip_serializing_if = "Option::is_none")]
    pub not_found_ttl: Option<Duration>,

    /// Refresh of popular responses before they expire, on routes without `earlyRefresh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "EarlyRefresh")]
    pub early_refresh: Option<EarlyRefresh>,

    /// Storage of the last good response in a Postgres table, on routes without `lastKnownGood`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_good: Option<LastKnownGood>,

    /// Time that a fallback response is served before the failed origin is tried again, on routes without `retryInterval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_interval: Option<Duration>,

    /// Maximum time without progress on a shared request to the origin, on routes without `collapseTimeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse_timeout: Option<Duration>,

    /// Wraps responses, on routes without `envelope`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<bool>,
}

impl CacheSpec {
    /// Returns the routes, filled in with the defaults.
    pub fn complete_routes(&self) -> Vec<RouteSpec> {
        completed(&self.routes, &self.defaults.clone().unwrap_or_default())
    }

    /// Fills in the routes, so that there are no defaults any more.
    pub fn complete(&mut self) {
        self.routes = self.complete_routes();
        self.defaults = None;
    }

    /// Returns the path of a field of a complete route, such as `statuses[0].ttl`, as it is written: in the defaults if the route takes it from
    /// there. An item of a map that both have counts as one of the defaults.
    pub fn written_at(&self, index: usize, field: &str) -> String {
        let (name, rest) = field.split_once('[').unwrap_or((field, ""));
        let (number, member) = rest.split_once(']').unwrap_or_default();
        let number = number.parse::<usize>().ok();
        let pointer = format!("/{}", name.replace('.', "/"));
        let value_in = |written: Result<Value, serde_json::Error>| written.ok()?.pointer(&pointer).cloned();
        let own = self.routes.get(index).and_then(|route| value_in(serde_json::to_value(route)));
        let default = value_in(serde_json::to_value(&self.defaults));
        let is_own = own.is_some_and(|own| {
            !ADDED_TO.contains(&name) || number.is_some_and(|number| own.get(number).is_some())
        });
        let has_grace = self.defaults.as_ref().is_some_and(|defaults| defaults.grace.is_some());
        match default {
            Some(default) if !is_own => {
                let place = number.map(|number| self.place_in(&default, index, &pointer, number));
                let place = place.map(|place| format!("[{place}]")).unwrap_or_default();
                format!("spec.defaults.{name}{place}{member}")
            }
            None if !is_own && has_grace && OF_GRACE.contains(&field) => "spec.defaults.grace".to_owned(),
            _ => format!("spec.routes[{index}].{field}"),
        }
    }

    /// Returns the index in a list of the defaults of an item of a complete route, which need not take the whole list.
    fn place_in(&self, list: &Value, index: usize, pointer: &str, number: usize) -> usize {
        let complete = self.routes.get(index).zip(self.defaults.as_ref()).map(|(route, defaults)| {
            let mut route = route.clone();
            route.fill_in(defaults);
            serde_json::to_value(route).unwrap_or_default()
        });
        let complete = complete.unwrap_or_default();
        let taken = &complete.pointer(pointer).unwrap_or(&Value::Null)[number];
        let is_taken =
            |item: &Value| item == taken || !taken["code"].is_null() && item["code"] == taken["code"];
        let mut items = list.as_array().into_iter().flatten();
        if is_taken(&list[number]) { number } else { items.position(is_taken).unwrap_or(number) }
    }

    /// Returns the fields of the defaults that no route takes, such as `key.headers`.
    pub fn defaults_without_effect(&self) -> Vec<String> {
        let Ok(Value::Object(defaults)) = serde_json::to_value(&self.defaults) else { return vec![] };
        let complete = self.complete_routes();
        let is_without_effect = |field: &String| {
            let mut others = defaults.clone();
            remove(&mut others, field);
            let others = serde_json::from_value(Value::Object(others));
            others.is_ok_and(|others| completed(&self.routes, &others) == complete)
        };
        fields_of(&defaults, "").into_iter().filter(is_without_effect).collect()
    }
}

fn completed(routes: &[RouteSpec], defaults: &RouteDefaults) -> Vec<RouteSpec> {
    let mut routes = routes.to_vec();
    routes.iter_mut().for_each(|route| route.fill_in(defaults));
    routes
}

/// Returns the fields that a route takes or not, each as a whole.
fn fields_of(members: &Map<String, Value>, at: &str) -> Vec<String> {
    let fields = members.iter().flat_map(|(name, value)| {
        let field = format!("{at}{name}");
        match value {
            Value::Object(parts) if FILLED_IN.contains(&field.as_str()) => {
                fields_of(parts, &format!("{field}."))
            }
            _ => vec![field],
        }
    });
    fields.collect()
}

fn remove(members: &mut Map<String, Value>, field: &str) {
    match field.split_once('.') {
        Some((name, rest)) => {
            if let Some(Value::Object(parts)) = members.get_mut(name) {
                remove(parts, rest);
            }
        }
        None => {
            members.remove(field);
        }
    }
}

impl RouteSpec {
    /// Sets what the route does not say and the defaults do.
    fn fill_in(&mut self, defaults: &RouteDefaults) {
        let RouteDefaults {
            ttl,
            max_ttl,
            statuses,
            stale_while_revalidate,
            stale_if_error,
            grace,
            store_despite,
            set_cookie,
            client_directives,
            bypass,
            key,
            forward_headers,
            tags_from,
            ttl_from,
            ttl_jitter_percent,
            l1_ttl,
            l2_ttl,
            not_found_ttl,
            early_refresh,
            last_known_good,
            retry_interval,
            collapse_timeout,
            envelope,
        } = defaults;
        if self.pass {
            return;
        }
        let statuses = statuses.as_deref().map(|statuses| self.fitting(statuses));
        fill_list(&mut self.statuses, &statuses);
        if !self.has_lifetime() {
            self.ttl = *ttl;
            self.max_ttl = *max_ttl;
            if self.ttl.is_some() {
                fill(&mut self.ttl_from, ttl_from);
            }
        }
        if self.ttl.is_some() {
            fill(&mut self.ttl_jitter_percent, ttl_jitter_percent);
        }
        if self.grace.is_none() {
            fill(&mut self.stale_while_revalidate, &stale_while_revalidate.or(*grace));
            fill(&mut self.stale_if_error, &stale_if_error.or(*grace));
        }
        fill_list(&mut self.store_despite, store_despite);
        fill(&mut self.set_cookie, set_cookie);
        fill(&mut self.client_directives, client_directives);
        // One without a condition is refused, and stays as it is.
        if self.bypass != Some(Bypass::default()) {
            self.bypass = filled(self.bypass.take(), bypass.as_ref(), Bypass::fill_in);
        }
        let has_post = self.matches.methods.contains(&CacheableMethod::Post);
        let mut key = key.clone();
        if let Some(key) = key.as_mut().filter(|_| !has_post) {
            key.body = None;
        }
        self.key = filled(self.key.take(), key.as_ref(), KeySpec::fill_in);
        fill(&mut self.forward_headers, forward_headers);
        fill(&mut self.tags_from, tags_from);
        fill(&mut self.l1_ttl, l1_ttl);
        fill(&mut self.l2_ttl, l2_ttl);
        if !self.from.is_empty() && !self.says_how_long_a_404_is_fresh() {
            fill(&mut self.not_found_ttl, not_found_ttl);
        }
        fill(&mut self.early_refresh, early_refresh);
        fill(&mut self.last_known_good, last_known_good);
        fill(&mut self.retry_interval, retry_interval);
        fill(&mut self.collapse_timeout, collapse_timeout);
        fill(&mut self.envelope, envelope);
    }

    fn has_lifetime(&self) -> bool {
        self.ttl.is_some() || self.max_ttl.is_some()
    }

    /// Returns statuses of the defaults as far as they go with the lifetimes that the route sets itself.
    fn fitting(&self, statuses: &[StatusSpec]) -> Vec<StatusSpec> {
        let fits = |status: &&StatusSpec| self.not_found_ttl.is_none() || !has_404(status);
        // A shorter one of an error is no lifetime that the route says otherwise.
        let takes = |status: &StatusSpec, ttl: &Duration| match self.ttl.or(self.max_ttl) {
            None => true,
            Some(own) => !is_success(status) && *ttl <= own,
        };
        let fitting = statuses.iter().filter(fits);
        fitting
            .map(|status| StatusSpec { ttl: status.ttl.filter(|ttl| takes(status, ttl)), ..status.clone() })
            .collect()
    }

    fn says_how_long_a_404_is_fresh(&self) -> bool {
        self.statuses.iter().flatten().any(has_404)
    }
}

fn is_success(status: &StatusSpec) -> bool {
    matches!(status.code, StatusPattern::Code(200..=299) | StatusPattern::Class(2))
}

fn has_404(status: &StatusSpec) -> bool {
    matches!(status.code, StatusPattern::Code(404) | StatusPattern::Class(4))
}

impl KeySpec {
    fn fill_in(&mut self, defaults: &Self) {
        let Self { query, host, headers, ignore_headers, cookies, body } = defaults;
        self.query = filled(self.query.take(), query.as_ref(), KeyQuery::fill_in);
        fill(&mut self.host, host);
        add(&mut self.headers, headers, str::eq_ignore_ascii_case);
        fill_list(&mut self.ignore_headers, ignore_headers);
        add(&mut self.cookies, cookies, str::eq);
        fill(&mut self.body, body);
    }
}

impl KeyQuery {
    fn fill_in(&mut self, defaults: &Self) {
        let Self { allow, ignore, order } = defaults;
        if self.allow.is_none() && self.ignore.is_none() {
            self.allow.clone_from(allow);
            self.ignore.clone_from(ignore);
        }
        fill_list(&mut self.allow, &None);
        fill_list(&mut self.ignore, &None);
        fill(&mut self.order, order);
    }
}

impl Bypass {
    fn fill_in(&mut self, defaults: &Self) {
        let Self { query, headers, cookies } = defaults;
        add_values(&mut self.query, query, str::eq);
        add_values(&mut self.headers, headers, str::eq_ignore_ascii_case);
        add_values(&mut self.cookies, cookies, str::eq);
    }
}

fn fill<T: Clone>(own: &mut Option<T>, default: &Option<T>) {
    if own.is_none() {
        own.clone_from(default);
    }
}

/// Fills a list in. An empty one has done its work then: without defaults it says nothing.
fn fill_list<T: Clone>(own: &mut Option<Vec<T>>, default: &Option<Vec<T>>) {
    fill(own, default);
    own.take_if(|list| list.is_empty());
}

/// Adds names of the defaults, unless the route's list is empty.
fn add(own: &mut Option<Vec<String>>, default: &Option<Vec<String>>, is_same: fn(&str, &str) -> bool) {
    if let Some(names) = own.as_mut().filter(|names| !names.is_empty()) {
        for name in default.iter().flatten() {
            if !names.iter().any(|known| is_same(known, name)) {
                names.push(name.clone());
            }
        }
    }
    fill_list(own, default);
}

/// Adds names of the defaults with their values, unless the route's map is empty.
fn add_values(
    own: &mut Option<BTreeMap<String, String>>,
    default: &Option<BTreeMap<String, String>>,
    is_same: fn(&str, &str) -> bool,
) {
    if let Some(values) = own.as_mut().filter(|values| !values.is_empty()) {
        for (name, value) in default.iter().flatten() {
            if !values.keys().any(|known| is_same(known, name)) {
                values.insert(name.clone(), value.clone());
            }
        }
    }
    fill(own, default);
    own.take_if(|values| values.is_empty());
}

/// Returns an object, filled in; `None` if it says nothing.
fn filled<T: Default + PartialEq>(own: Option<T>, default: Option<&T>, fill_in: fn(&mut T, &T)) -> Option<T> {
    let mut filled = own.unwrap_or_default();
    fill_in(&mut filled, default.unwrap_or(&T::default()));
    Some(filled).filter(|filled| *filled != T::default())
}
