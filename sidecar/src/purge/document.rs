//! Documents that name what to purge, from the admin API, from responses of the application and from Postgres.

use larder_api::admin::PurgeRequest;
use larder_policy::{Policy, PurgeName, WrittenKey, policy::Purges};

/// Shape of a document.
pub const SHAPE: &str =
    r#"{"keys": [...], "paths": [...], "prefixes": [...], "tags": [...], "everything": true, "soft": true}"#;

/// Maximum length of a path in bytes: that of a request target, 32 KiB, with every byte escaped.
const MAX_PATH: usize = 3 * (32 << 10);

/// Reads a document from Postgres.
///
/// # Errors
/// If it is none, or has a name that nothing is stored under.
pub fn parse(text: &str) -> Result<PurgeRequest, String> {
    let request: PurgeRequest = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if request == (PurgeRequest { soft: request.soft, ..PurgeRequest::default() }) {
        return Err("it names nothing".to_owned());
    }
    names_nothing(&request).map_or(Ok(request), Err)
}

/// Returns the names that a document purges under a policy.
pub fn names_of(request: &PurgeRequest, policy: &Policy) -> Vec<PurgeName> {
    let PurgeRequest { keys, paths, prefixes, tags, everything, soft } = request.clone();
    let written = keys.iter().filter_map(|key| WrittenKey::parse(key).ok());
    let of_keys = written.flat_map(|key| key.purge_names(policy));
    let names: Vec<_> = of_keys.chain(Purges { tags, paths, prefixes, everything }.names()).collect();
    if soft && !names.is_empty() { PurgeName::softly(names) } else { names }
}

/// Returns the reason that a name can't be that of a stored response: its sender would take it for purged.
pub fn names_nothing(request: &PurgeRequest) -> Option<String> {
    let PurgeRequest { keys, paths, prefixes, tags, everything: _, soft: _ } = request;
    let of_key =
        keys.iter().find_map(|key| WrittenKey::parse(key).err().map(|reason| format!("{key:?} {reason}")));
    let of_path = || {
        paths.iter().chain(prefixes).find_map(|path| {
            if !path.starts_with('/') || path.contains(['?', '#']) {
                Some(format!("{path:?} is not a path: start it with '/' and leave out the query"))
            } else if path.split('/').any(|segment| segment.ends_with('*')) {
                Some(format!(
                    "{path:?} has a '*', but patterns are not supported: purge one of prefixes, such as /static, or a tag to reach several paths, or write %2A for a literal '*'"
                ))
            } else if path.len() > MAX_PATH {
                Some(format!("the path has {} bytes, more than any request target", path.len()))
            } else {
                None
            }
        })
    };
    let of_tag = || {
        tags.iter()
            .find(|tag| tag.is_empty() || tag.trim() != *tag)
            .map(|tag| format!("{tag:?} matches no tag: remove the spaces at its ends"))
    };
    of_key.or_else(of_path).or_else(of_tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_is_that_of_the_admin_api() {
        let request = parse(r#"{"tags": ["user:1"], "soft": true}"#).unwrap();
        assert_eq!(names_of(&request, &Policy::bare()), PurgeName::softly(vec![PurgeName::tag("user:1")]));
        assert!(parse(r#"{"everything": true}"#).is_ok());
        for text in [
            "",
            "user:1",
            "{}",
            r#"{"soft": true}"#,
            r#"{"tag": ["a"]}"#,
            r#"{"tags": [" a"]}"#,
            r#"{"paths": ["a"]}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
