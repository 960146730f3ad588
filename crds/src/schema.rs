//! Schemas of Kubernetes' own types, with the limits that CEL's cost estimate needs and with messages of their own.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A container port: a name of at most 15 characters (an IANA service name) or a number.
pub(crate) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 64,
        "x-kubernetes-validations": [{
            "rule": "self != string(self) ? self > 0 && self < 65536 : size(self) <= 15 && self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$') && self.matches('[a-z]')",
            "message": "write the name of a container port, such as http, or its number, such as 8080",
        }],
    })
}

/// An amount of CPU time or memory.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 32,
        "x-kubernetes-validations": [{
            "rule": "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
            "message": "write a quantity such as 20m, 1 or 128Mi",
        }],
    })
}

/// A label selector that is not empty.
pub(crate) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-validations": [{
            "rule": "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
            "message": "an empty selector would select every pod of the namespace: name labels of the pods, such as matchLabels: {app: shop}",
        }],
        "properties": {
            "matchLabels": {
                "description": "Labels and the values that they must have.",
                "type": "object",
                "maxProperties": 16,
                "additionalProperties": {"type": "string", "maxLength": 63},
            },
            "matchExpressions": {
                "description": "Conditions that all must hold.",
                "type": "array",
                "maxItems": 16,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "x-kubernetes-validations": [{
                        "rule": "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
                        "message": "In and NotIn need values; Exists and DoesNotExist take none",
                    }],
                    "properties": {
                        "key": {"description": "The label.", "type": "string", "maxLength": 317},
                        "operator": {
                            "description": "Relation of the label to the values.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "Values that the label is compared with.",
                            "type": "array",
                            "maxItems": 32,
                            "x-kubernetes-list-type": "atomic",
                            "items": {"type": "string", "maxLength": 63},
                        },
                    },
                },
            },
        },
    })
}

/// Conditions in the format of the [API
/// conventions](https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md).
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"description": "Type of the condition.", "type": "string", "maxLength": 316},
                "status": {"description": "True if the condition holds.", "type": "string", "enum": ["True", "False", "Unknown"]},
                "reason": {"description": "Reason in one word, for programs.", "type": "string", "maxLength": 1024},
                "message": {"description": "Reason as a sentence, for users.", "type": "string", "maxLength": 32768},
                "lastTransitionTime": {
                    "description": "Time at which the status last changed.",
                    "type": "string",
                    "format": "date-time",
                },
                "observedGeneration": {
                    "description": "The metadata.generation that the condition was derived from.",
                    "type": "integer",
                    "format": "int64",
                },
            },
        },
    })
}

/// A time, in the format of RFC 3339.
pub(crate) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// Rules for a list of paths to purge.
pub(crate) fn paths() -> serde_json::Value {
    serde_json::json!([
        {
            "rule": "self.all(p, p.startsWith('/') && !p.contains('?') && !p.contains('#'))",
            "message": "a path starts with '/', without the query: write one such as /api/users",
        },
        {
            "rule": "self.all(p, !p.matches('[*](/|$)'))",
            "message": "no pattern is matched: purge one of prefixes, such as /static, or a tag, or write %2A for a literal '*'",
        },
    ])
}
