//! Tests that disturb every other one. They are named here, so that they come last and one after another: in between, each
//! would wait until the others that run have ended.

/// Makes tests of functions, which are given with their module.
macro_rules! alone {
    ($($module:ident::$name:ident,)*) => {$(
        #[tokio::test]
        async fn $name() -> anyhow::Result<()> {
            super::$module::$name().await
        }
    )*};
}

alone! {
    bounding::policy_above_a_bound_of_the_chart_is_refused_with_the_bound,
    covering::pods_made_while_the_webhook_was_away_are_reported_and_interrupt,
    namespaced::operator_of_one_namespace_works_there_with_rights_nowhere_else,
    operating::while_the_webhook_is_down_pods_start_and_are_counted_as_missed_and_named,
    operating::without_its_definition_the_cache_passes_through_and_comes_back_with_it,
    owners::argo_rollout_is_restarted_by_its_own_field,
    redirecting::redirection_that_the_chart_does_not_allow_is_refused_with_its_line,
    rights::every_right_of_the_operator_is_missed_when_it_is_taken_away,
    rolling::a_changed_sidecar_image_loses_nothing,
    undoing::sidecar_image_that_is_not_there_costs_one_pod_for_a_while,
    upgrading::uninstalling_leaves_nothing_and_an_upgrade_from_the_previous_chart_goes_on,
}
