//! A policy in a file.

use std::{fs, path::PathBuf};

use super::{Folder, environment, unique};

/// A policy of its own name, and so with its own keys in Redis, in a file that can be changed.
#[derive(Debug)]
pub(crate) struct Policy {
    folder: Folder,
    name: String,
}

impl Policy {
    /// Writes a policy with this `spec`.
    pub(crate) fn new(spec: &str) -> Self {
        let policy = Self { folder: Folder::new(), name: unique("policy") };
        policy.change(spec);
        policy
    }

    /// Writes a policy with this `spec` as the operator compiles one that relies on seeing every write.
    pub(crate) fn compiled(spec: &str) -> Self {
        let policy = Self::new(spec);
        let text = fs::read_to_string(policy.path()).unwrap();
        let text = text.replace("namespace: itest}", "namespace: itest, uid: u-1}");
        policy.write(&format!("{text}followsCoverage: true\n"));
        policy
    }

    /// Writes a policy with this `spec` and bounds on destinations, as the operator compiles one.
    pub(crate) fn within(spec: &str, destinations: &str) -> Self {
        let policy = Self::new(spec);
        policy.bound(destinations);
        policy
    }

    /// Adds bounds on destinations to the file.
    pub(crate) fn bound(&self, destinations: &str) {
        let text = fs::read_to_string(self.path()).unwrap();
        self.write(&format!("{text}destinations: {destinations}\n"));
    }

    /// The same policy in another pod, whose files change at other times and have no word on coverage yet.
    pub(crate) fn elsewhere(&self) -> Self {
        let policy = Self { folder: Folder::new(), name: self.name.clone() };
        policy.write(&fs::read_to_string(self.path()).unwrap());
        policy
    }

    /// Writes the state of coverage beside the file, atomically.
    pub(crate) fn cover(&self, state: &str, since: &str) {
        self.write_coverage(&format!(r#"{{"policy":"u-1","state":"{state}","since":"{since}"}}"#));
    }

    /// Writes any text into the coverage file, atomically.
    pub(crate) fn write_coverage(&self, text: &str) {
        let written = self.folder.join("written-coverage");
        fs::write(&written, text).unwrap();
        fs::rename(written, self.folder.join("coverage.json")).unwrap();
    }

    /// The same policy in a file of its own, as in another pod that hears of changes at another time.
    pub(crate) fn twin(&self, spec: &str) -> Self {
        let twin = Self { folder: Folder::new(), name: self.name.clone() };
        twin.change(spec);
        twin
    }

    /// Writes another `spec` into the file, atomically.
    pub(crate) fn change(&self, spec: &str) {
        if spec.contains("LARDER_TEST_REDIS_URL") {
            environment("LARDER_TEST_REDIS_URL");
        }
        let spec = spec.trim_matches('\n').replace('\n', "\n  ");
        let name = &self.name;
        self.write(&format!(
            "apiVersion: larder.dev/v1alpha1\nkind: CachePolicy\nmetadata: {{name: {name}, namespace: itest}}\nspec:\n  {spec}\n"
        ));
    }

    /// Writes any text into the file, atomically.
    pub(crate) fn write(&self, text: &str) {
        let written = self.folder.join("written");
        fs::write(&written, text).unwrap();
        fs::rename(written, self.path()).unwrap();
    }

    /// Removes the file.
    pub(crate) fn vanish(&self) {
        fs::remove_file(self.path()).unwrap();
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("policy.yaml")
    }

    /// Returns the key of the barriers in Redis.
    pub(crate) fn barriers(&self) -> String {
        format!("larder:itest/{}:barriers:", self.name)
    }

    /// Returns the patterns of an ACL that this policy needs: of keys, and of channels.
    pub(crate) fn access(&self) -> [String; 2] {
        ["~", "&"].map(|kind| format!("{kind}larder:itest/{}:*", self.name))
    }

    /// Returns the keys of the policy's records in Redis: entries, variants, and the names of `Vary`.
    pub(crate) async fn records(&self, redis: &mut redis::aio::MultiplexedConnection) -> Vec<String> {
        let pattern = format!("larder:itest/{}:*}}:[ev]*", self.name);
        redis::cmd("KEYS").arg(pattern).query_async(redis).await.unwrap()
    }

    async fn stored_records(&self, redis: &mut redis::aio::MultiplexedConnection) -> usize {
        self.records(redis).await.len()
    }

    /// Waits until Redis holds so many records of the policy: an entry, or the names of its `Vary`, is one.
    pub(crate) async fn until_stored(&self, redis: &mut redis::aio::MultiplexedConnection, count: usize) {
        super::until("records in Redis", async || (self.stored_records(redis).await >= count).then_some(()))
            .await;
    }

    /// Returns true if Redis holds nothing of the policy.
    pub(crate) async fn nothing_is_stored(&self, redis: &mut redis::aio::MultiplexedConnection) -> bool {
        self.stored_records(redis).await == 0
    }
}
