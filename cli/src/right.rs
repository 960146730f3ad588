//! A right that the API server misses, read from its words, and the commands that grant it.

use std::fmt;

use crate::wording;

/// Start of a service account's user name.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Resource of port-forwards.
const PORT_FORWARD: &str = "pods/portforward";

/// A right that a user lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    user: String,
    verb: String,
    /// Resource, with its subresource: `pods/portforward`.
    resource: String,
    /// API group; empty for the core's.
    group: String,
    /// Name of the one object, where only that was asked for.
    name: Option<String>,
    /// Namespace; `None` for all of them.
    namespace: Option<String>,
}

impl Right {
    /// Reads the words of RBAC's refusal, such as `secrets "a" is forbidden: User "jane" cannot get resource "secrets" in
    /// API group "" in the namespace "shop"`.
    pub(crate) fn of_refusal(words: &str) -> Option<Self> {
        let words = wording::one_line(words);
        let (object, refusal) = words.split_once(" is forbidden: User ")?;
        let (user, rest) = quoted(refusal)?;
        let (verb, rest) = rest.strip_prefix(" cannot ")?.split_once(" resource ")?;
        let (resource, rest) = quoted(rest)?;
        let (group, rest) = quoted(rest.strip_prefix(" in API group ")?)?;
        let namespace =
            rest.strip_prefix(" in the namespace ").and_then(quoted).map(|(name, _)| name.to_owned());
        let name = object.split_once(' ').and_then(|(_, name)| quoted(name)).map(|(name, _)| name.to_owned());
        Some(Self {
            user: user.to_owned(),
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            group: group.to_owned(),
            // Pods come and go: a right to one of them soon serves nobody.
            name: name.filter(|_| !resource.starts_with("pods")),
            namespace,
        })
    }

    /// Returns the right to forward ports to pods by `create`. API servers refuse it to those who have only `get`, without a
    /// word on the right.
    pub(crate) fn to_forward(user: &str, namespace: &str) -> Self {
        Self {
            user: wording::one_line(user),
            verb: "create".to_owned(),
            resource: PORT_FORWARD.to_owned(),
            group: String::new(),
            name: None,
            namespace: Some(namespace.to_owned()),
        }
    }

    /// Returns the lack of the right in words.
    pub(crate) fn lack(&self) -> String {
        let Self { user, verb, resource, name, namespace, .. } = self;
        let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let place = match namespace {
            Some(namespace) => format!("namespace {namespace}"),
            None => "all namespaces".to_owned(),
        };
        format!("{user} may not {verb} {resource}{name} in {place}")
    }

    /// Returns the commands that grant the right.
    pub(crate) fn grant(&self) -> String {
        let Self { user, verb, resource, group, name, namespace } = self;
        // A Role can't be created in a namespace that is not there.
        let namespace = namespace.as_ref().filter(|_| resource != "namespaces");
        let (role, binding, scope) = match namespace {
            Some(namespace) => ("role", "rolebinding", format!(" --namespace={namespace}")),
            None => ("clusterrole", "clusterrolebinding", String::new()),
        };
        let account = user.strip_prefix(SERVICE_ACCOUNT);
        let short_user = account.unwrap_or(user);
        let name_parts = [Some(verb.as_str()), Some(resource), name.as_deref(), Some(short_user)];
        let named = name_parts.into_iter().flatten().fold("larder".to_owned(), |named, part| {
            named + "-" + &part.replace(|character: char| !character.is_ascii_alphanumeric(), "-")
        });
        let verbs = if resource == PORT_FORWARD { "get,create" } else { verb };
        let resource = match (group.as_str(), resource.split_once('/')) {
            ("", _) => resource.clone(),
            (group, None) => format!("{resource}.{group}"),
            (group, Some((resource, sub))) => format!("{resource}.{group}/{sub}"),
        };
        let of_name = name.as_ref().map(|name| format!(" --resource-name={name}")).unwrap_or_default();
        let subject = match account {
            Some(account) => format!("--serviceaccount={account}"),
            None => format!("--user={}", shell_word(user)),
        };
        format!(
            "kubectl create {role} {named}{scope} --verb={verbs} --resource={resource}{of_name} && \
             kubectl create {binding} {named}{scope} --{role}={named} {subject}"
        )
    }
}

impl fmt::Display for Right {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: have an administrator run\n  {}", self.lack(), self.grant())
    }
}

/// Returns a text as one word of a shell's command.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@/".contains(&byte);
    if text.bytes().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Splits a text that begins with a quoted word after that word.
fn quoted(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('"')?.split_once('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(words: &str) -> String {
        Right::of_refusal(words).unwrap().to_string()
    }

    #[test]
    fn right_to_forward_ports_is_granted_for_all_pods() {
        assert_eq!(
            said(
                r#"pods "shop-1" is forbidden: User "jane" cannot get resource "pods/portforward" in API group "" in the namespace "shop""#
            ),
            "jane may not get pods/portforward in namespace shop: have an administrator run\n  \
             kubectl create role larder-get-pods-portforward-jane --namespace=shop --verb=get,create \
             --resource=pods/portforward \
             && kubectl create rolebinding larder-get-pods-portforward-jane --namespace=shop \
             --role=larder-get-pods-portforward-jane --user=jane"
        );
        let create = Right::to_forward("jane", "shop").to_string();
        assert!(create.starts_with("jane may not create pods/portforward in namespace shop"), "{create}");
        assert!(create.contains("--verb=get,create --resource=pods/portforward"), "{create}");
    }

    #[test]
    fn users_of_identity_providers_are_quoted_and_name_the_role() {
        let said = Right::to_forward("https://login.example#jane o'neil", "shop").to_string();
        assert!(said.contains(r"--user='https://login.example#jane o'\''neil'"), "{said}");
        assert!(
            said.contains("create role larder-create-pods-portforward-https---login-example-jane-o-neil "),
            "{said}"
        );
    }

    #[test]
    fn right_to_a_secret_is_granted_for_that_one_alone() {
        let said = said(
            r#"secrets "larder-shop-admin" is forbidden: User "system:serviceaccount:ci:deployer" cannot get resource "secrets" in API group "" in the namespace "shop": RBAC: role not found"#,
        );
        assert!(said.contains("may not get secrets larder-shop-admin in namespace shop"), "{said}");
        assert!(said.contains("--resource=secrets --resource-name=larder-shop-admin"), "{said}");
        assert!(said.contains("--serviceaccount=ci:deployer"), "{said}");
    }

    #[test]
    fn right_in_all_namespaces_takes_a_cluster_role() {
        let said = said(
            r#"cachepolicies.larder.dev is forbidden: User "jane" cannot list resource "cachepolicies" in API group "larder.dev" at the cluster scope"#,
        );
        assert!(said.contains("jane may not list cachepolicies in all namespaces"), "{said}");
        assert!(
            said.contains("kubectl create clusterrole larder-list-cachepolicies-jane --verb=list"),
            "{said}"
        );
        assert!(said.contains("--resource=cachepolicies.larder.dev"), "{said}");
        assert!(said.contains("--clusterrole=larder-list-cachepolicies-jane"), "{said}");
    }

    #[test]
    fn right_to_a_namespace_takes_a_cluster_role() {
        let said = said(
            r#"namespaces "shop" is forbidden: User "jane" cannot get resource "namespaces" in API group "" in the namespace "shop""#,
        );
        assert!(
            said.contains("kubectl create clusterrole larder-get-namespaces-shop-jane --verb=get"),
            "{said}"
        );
        assert!(said.contains("--resource=namespaces --resource-name=shop"), "{said}");
    }

    #[test]
    fn words_of_webhooks_are_no_right() {
        assert_eq!(Right::of_refusal("admission webhook denied the request: no"), None);
    }
}
