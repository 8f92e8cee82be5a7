//! The fields of every answer with their types; an answer has exactly these keys.
//!
//! `s` is text, `u` UUID, `t` time, `b` true or false, `i` integer, `o` object, `v` any value; `[…]` a list of them;
//! `?` may be null but must be present, `~` may be left out but is never null.

use serde_json::Value;

const SHAPES: &[(&str, &str)] = &[
    ("AuthResponse", "admin:b agent:u? generator:u? readonly:b"),
    (
        "Agent",
        "id:u created_at:t updated_at:t deleted_at:t? name:s cluster_name:s status:s last_heartbeat:t? \
         k8s_reachable:b? k8s_api_latency_ms:i? k8s_reported_at:t?",
    ),
    ("AgentLabel", "id:u agent_id:u label:s"),
    ("AgentAnnotation", "id:u agent_id:u key:s value:s"),
    ("AgentTarget", "id:u agent_id:u stack_id:u"),
    (
        "AgentEvent",
        "id:u created_at:t updated_at:t deleted_at:t? agent_id:u deployment_object_id:u event_type:s status:s message:s?",
    ),
    (
        "AgentGeneratorRegistration",
        "id:u agent_id:u generator_id:u registered_at:t",
    ),
    (
        "Generator",
        "id:u created_at:t updated_at:t deleted_at:t? name:s description:s? last_active_at:t? is_active:b is_system:b",
    ),
    (
        "Stack",
        "id:u created_at:t updated_at:t deleted_at:t? name:s description:s? generator_id:u",
    ),
    ("StackLabel", "id:u stack_id:u label:s"),
    ("StackAnnotation", "id:u stack_id:u key:s value:s"),
    (
        "DeploymentObject",
        "id:u created_at:t updated_at:t deleted_at:t? sequence_id:i stack_id:u yaml_content:s yaml_checksum:s \
         submitted_at:t is_deletion_marker:b",
    ),
    (
        "WorkOrder",
        "id:u created_at:t updated_at:t work_type:s yaml_content:s status:s claimed_by:u? claimed_at:t? \
         claim_timeout_seconds:i max_retries:i retry_count:i backoff_seconds:i next_retry_after:t? last_error:s? \
         last_error_at:t?",
    ),
    (
        "WorkOrderLog",
        "id:u work_type:s created_at:t claimed_at:t? claimed_by:u? completed_at:t success:b retries_attempted:i \
         result_message:s? yaml_content:s",
    ),
    ("RetryScheduled", "status:s"),
    (
        "StackTemplate",
        "id:u created_at:t updated_at:t deleted_at:t? generator_id:u? name:s description:s? version:i \
         template_content:s parameters_schema:s checksum:s",
    ),
    ("TemplateLabel", "id:u template_id:u label:s created_at:t"),
    (
        "TemplateAnnotation",
        "id:u template_id:u key:s value:s created_at:t",
    ),
    (
        "WebhookResponse",
        "id:u name:s has_url:b has_auth_header:b event_types:[s] filters:o? target_labels:[s]? enabled:b max_retries:i \
         timeout_seconds:i created_at:t updated_at:t created_by:s?",
    ),
    (
        "WebhookDelivery",
        "id:u subscription_id:u event_type:s event_id:u payload:s target_labels:[s]? status:s acquired_by:u? \
         acquired_until:t? attempts:i last_attempt_at:t? next_retry_at:t? last_error:s? created_at:t completed_at:t?",
    ),
    (
        "WebhookDeliveryFeedItem",
        "id:u subscription_id:u subscription_name:s? event_type:s event_id:u status:s acquired_by:u? attempts:i \
         last_attempt_at:t? next_retry_at:t? last_error:s? target_labels:[s] created_at:t completed_at:t?",
    ),
    (
        "PendingWebhookDelivery",
        "id:u subscription_id:u event_type:s payload:s url:s auth_header:s? timeout_seconds:i max_retries:i attempts:i",
    ),
    ("DeliveryTaken", "status:s delivery_id:u"),
    ("CreateAgentResponse", "agent:Agent initial_pak:s"),
    ("RotatedAgent", "agent:Agent pak:s"),
    ("CreateGeneratorResponse", "generator:Generator pak:s"),
    (
        "FleetAgentRecord",
        "agent_id:u name:s cluster_name:s status:s ws_connected:b connected_since:t? last_heartbeat:t? \
         heartbeat_age_seconds:i? pending_object_count:i pending_work_orders:i claimed_work_orders:i last_event_at:t? \
         seconds_since_last_event:i? health_failing:i health_degraded:i k8s_reachable:b? k8s_api_latency_ms:i?",
    ),
    (
        "AgentFleetStatusResponse",
        "record:FleetAgentRecord recent_events:[AgentEvent]",
    ),
    (
        "RetentionInfo",
        "retention_ceiling_seconds:i effective_retention_seconds:i oldest_available_ts:t? long_term_sink_hint:s",
    ),
    (
        "AgentK8sEvent",
        "id:u agent_id:u stack_id:u observed_at:t reason:s message:s event_type:s source:s? involved_object:InvolvedObject \
         created_at:t",
    ),
    (
        "InvolvedObject",
        "api_version:s kind:s namespace:s? name:s uid:s?",
    ),
    (
        "AgentPodLog",
        "id:u agent_id:u stack_id:u namespace:s pod:s container:s ts:t line:s created_at:t",
    ),
    (
        "K8sEventHistoryResponse",
        "retention:RetentionInfo events:[AgentK8sEvent]",
    ),
    (
        "PodLogHistoryResponse",
        "retention:RetentionInfo lines:[AgentPodLog]",
    ),
    (
        "WsConnectionInfo",
        "agent_id:u connected_since:t messages_in:i messages_out:i",
    ),
    (
        "WsConnectionsResponse",
        "connected_agents:i connections:[WsConnectionInfo] live_subscribers:i",
    ),
    (
        "DiagnosticRequest",
        "id:u agent_id:u deployment_object_id:u status:s requested_by:s? created_at:t claimed_at:t? completed_at:t? \
         expires_at:t",
    ),
    (
        "DiagnosticResult",
        "id:u request_id:u pod_statuses:s events:s log_tails:s? collected_at:t created_at:t",
    ),
    (
        "DiagnosticResponse",
        "request:DiagnosticRequest result:DiagnosticResult?",
    ),
    (
        "DeploymentHealth",
        "id:u agent_id:u deployment_object_id:u status:s summary:s? checked_at:t created_at:t updated_at:t",
    ),
    (
        "DeploymentHealthResponse",
        "deployment_object_id:u health_records:[DeploymentHealth] overall_status:s",
    ),
    (
        "DeploymentObjectHealthSummary",
        "id:u status:s healthy_agents:i degraded_agents:i failing_agents:i",
    ),
    (
        "StackHealthResponse",
        "stack_id:u overall_status:s deployment_objects:[DeploymentObjectHealthSummary]",
    ),
    ("PakSummary", "id:u name:s"),
    (
        "AuditLogEntry",
        "id:u timestamp:t actor_type:s actor_id:u? action:s resource_type:s resource_id:u? details:v? created_at:t \
         actor_name:s?",
    ),
    (
        "AuditLogListResponse",
        "logs:[AuditLogEntry] total:i count:i limit:i offset:i",
    ),
    (
        "ConfigReloadResponse",
        "reloaded_at:t changes:[ConfigChangeInfo] success:b",
    ),
    ("ConfigChangeInfo", "key:s old_value:s new_value:s"),
];

/// Returns the shapes' names, each with the names of its fields.
pub fn all() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    SHAPES.iter().map(|(name, fields)| {
        let fields = fields.split_whitespace();
        let names = fields.map(|field| field.split(':').next().unwrap_or_default());
        (*name, names.collect())
    })
}

/// Checks an answer against a shape; `[Shape]` is a list of them.
#[track_caller]
pub fn check(shape: &str, value: &Value) {
    if let Some(inner) = shape.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
        let list = value
            .as_array()
            .unwrap_or_else(|| panic!("{shape}: no list: {value}"));
        list.iter().for_each(|item| check(inner, item));
        return;
    }
    if shape.len() == 1 {
        assert!(is(shape, value), "{shape}: {value}");
        return;
    }
    let Some((_, fields)) = SHAPES.iter().find(|(name, _)| *name == shape) else {
        panic!("no shape {shape}");
    };
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("{shape}: no object: {value}"));
    let mut wanted: Vec<&str> = Vec::new();
    for field in fields.split_whitespace() {
        let Some((name, kind)) = field.split_once(':') else {
            panic!("{field}")
        };
        wanted.push(name);
        let (kind, left_out) = kind.strip_suffix('~').map_or((kind, false), |k| (k, true));
        let Some(found) = object.get(name) else {
            assert!(left_out, "{shape}.{name} is missing: {value}");
            continue;
        };
        let (kind, optional) = kind.strip_suffix('?').map_or((kind, false), |k| (k, true));
        if optional && found.is_null() {
            continue;
        }
        if kind.len() > 1 {
            check(kind, found);
        } else {
            assert!(is(kind, found), "{shape}.{name}: {found}");
        }
    }
    for name in object.keys() {
        assert!(
            wanted.contains(&name.as_str()),
            "{shape} must not have {name}"
        );
    }
}

fn is(kind: &str, value: &Value) -> bool {
    let text = value.as_str();
    match kind {
        "s" => text.is_some(),
        "b" => value.is_boolean(),
        "v" => true,
        "i" => value.is_i64(),
        "o" => value.is_object(),
        "u" => text.is_some_and(|t| {
            uuid::Uuid::parse_str(t).is_ok_and(|id| id.hyphenated().to_string() == t)
        }),
        "t" => text.is_some_and(|t| {
            t.len() >= 20 && t.ends_with('Z') && t.as_bytes().get(10) == Some(&b'T')
        }),
        _ => panic!("no kind {kind}"),
    }
}
