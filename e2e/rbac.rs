//! Who may do what, on a real API server: the manager's account, and the roles for people.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::collections::BTreeSet;

use harness::ControlPlane;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

#[tokio::test]
async fn permissions_are_exactly_those_of_the_contract() {
    let plane = ControlPlane::shared().await;
    plane.service_account_kubeconfig().await;
    let api: Api<SubjectAccessReview> = Api::all(plane.client().await);
    let may = async |namespace: &str, group: &str, resource: &str, subresource: &str, verb: &str| {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: text("system:serviceaccount:praetor-system:praetor-manager"),
                groups: Some(vec![
                    "system:serviceaccounts".into(),
                    "system:serviceaccounts:praetor-system".into(),
                    "system:authenticated".into(),
                ]),
                resource_attributes: Some(ResourceAttributes {
                    namespace: text(namespace),
                    group: text(group),
                    resource: text(resource),
                    subresource: text(subresource),
                    verb: text(verb),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        api.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
    };
    const ALL: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let (azure, coordination, own) = ("azure.com", "coordination.k8s.io", "praetor-system");
    let rows: &[(&str, &str, &str, &str, &[&str])] = &[
        ("any", azure, "networkswitches", "", &["get", "list", "watch"]),
        ("any", azure, "deviceprocessdeployments", "", &["get", "list", "watch"]),
        ("any", azure, "networkswitches", "status", &["patch"]),
        ("any", azure, "deviceprocessdeployments", "status", &["patch"]),
        ("any", azure, "deviceprocesses", "", &["get", "list", "watch", "create", "patch", "delete"]),
        ("any", azure, "deviceprocesses", "status", &["patch"]),
        ("any", azure, "deviceprocessdeployments", "finalizers", &[]),
        ("any", "events.k8s.io", "events", "", &["get", "create"]),
        ("any", "", "events", "", &[]),
        ("any", coordination, "leases", "", &[]),
        (own, coordination, "leases", "", &["get", "list", "create", "update", "delete"]),
        ("any", "", "pods", "", &[]),
        (own, "", "pods", "", &["get"]),
        (own, "", "secrets", "", &[]),
        (own, "", "configmaps", "", &[]),
        ("", "apiextensions.k8s.io", "customresourcedefinitions", "", &[]),
    ];
    for (namespace, group, resource, subresource, expected) in rows {
        let mut allowed = BTreeSet::new();
        for verb in ALL {
            if may(namespace, group, resource, subresource, verb).await {
                allowed.insert(verb);
            }
        }
        assert_eq!(allowed, expected.iter().copied().collect(), "{group}/{resource}/{subresource} in {namespace:?}");
    }
}

#[tokio::test]
async fn roles_for_people_are_aggregated() {
    // Nothing aggregates without a controller-manager: what counts is what the roles say.
    let kubectl = ControlPlane::shared().await.kubectl();
    ControlPlane::shared().await.service_account_kubeconfig().await;
    for (role, to, verbs) in [
        ("praetor-view", "view", "get list watch"),
        ("praetor-edit", "edit", "create update patch delete deletecollection"),
    ] {
        let label = kubectl
            .run(&[
                "get",
                "clusterrole",
                role,
                "-o",
                &format!("jsonpath={{.metadata.labels.rbac\\.authorization\\.k8s\\.io/aggregate-to-{to}}}"),
            ])
            .await;
        assert_eq!(label, "true", "{role}");
        let found = kubectl.run(&["get", "clusterrole", role, "-o", "jsonpath={.rules[0].verbs[*]}"]).await;
        assert_eq!(found, verbs, "{role}");
    }
}
