use super::*;
use crate::platform::clock::ManualClock;
use crate::platform::http_kit::Precondition;
use crate::rules::model::{NAME_CHARS_MAX, RULES_PER_TENANT_MAX};
use crate::rules::service::{RuleBoard, RuleDraft, RuleError, RuleService};
use crate::testing::registry;
use serde_json::json;

fn me() -> crate::tenants::Principal {
    crate::testing::owner(&acme())
}

fn draft(name: &str) -> RuleDraft {
    let mut json = hot_json(0);
    json["name"] = json!(name);
    serde_json::from_value(json).unwrap()
}

fn service(dir: &std::path::Path) -> (RuleService, Arc<ManualClock>) {
    let clock = ManualClock::at(START);
    (RuleService::new(registry(dir), clock.clone(), Arc::new(RuleBoard::default())), clock)
}

#[tokio::test]
async fn rules_are_written_changed_and_deleted_within_their_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let (service, clock) = service(dir.path());
    let other = TenantId::parse("other").unwrap();
    let made = service.create(&me(), &acme(), draft("hot")).await.unwrap();
    assert_eq!((made.version, made.enabled, made.created_at_us), (1, true, START));
    assert_eq!(service.get(&acme(), &made.id).await.unwrap(), made);
    assert!(matches!(service.get(&other, &made.id).await, Err(RuleError::NotFound)));
    assert!(matches!(service.create(&me(), &acme(), draft("hot")).await, Err(RuleError::NameTaken)));
    assert!(service.create(&me(), &other, draft("hot")).await.is_ok());
    clock.advance_us(SECOND);
    let before = service.board().generation();
    let changed = service
        .update(&me(), &acme(), &made.id, (Some(1), Precondition::None), draft("hotter"))
        .await
        .unwrap();
    assert_eq!(
        (changed.version, changed.name.as_str(), changed.updated_at_us),
        (2, "hotter", START + SECOND)
    );
    assert!(service.board().generation() > before);
    assert!(matches!(
        service.update(&me(), &acme(), &made.id, (Some(1), Precondition::None), draft("x")).await,
        Err(RuleError::Conflict)
    ));
    assert!(matches!(
        service.update(&me(), &other, &made.id, (None, Precondition::None), draft("x")).await,
        Err(RuleError::NotFound)
    ));
    assert!(matches!(
        service.delete(&me(), &other, &made.id, Precondition::None).await,
        Err(RuleError::NotFound)
    ));
    service.delete(&me(), &acme(), &made.id, Precondition::None).await.unwrap();
    assert!(matches!(
        service.delete(&me(), &acme(), &made.id, Precondition::None).await,
        Err(RuleError::NotFound)
    ));
    assert!(service.list(&acme(), "", 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_wrong_rule_is_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = service(dir.path());
    let mut wrong = draft("hot");
    wrong.condition = "value > nope".into();
    let Err(RuleError::Invalid(error)) = service.create(&me(), &acme(), wrong.clone()).await else {
        panic!("it was stored")
    };
    assert_eq!((error.field.as_str(), error.position.unwrap().column), ("condition", 9));
    assert_eq!(service.validate(&acme(), wrong).unwrap_err().field, "condition");
    assert!(service.validate(&acme(), draft(&"é".repeat(NAME_CHARS_MAX))).is_ok());
    for name in ["", " x", "a\nb", &"é".repeat(NAME_CHARS_MAX + 1)] {
        assert_eq!(service.validate(&acme(), draft(name)).unwrap_err().field, "name", "{name:?}");
    }
    let unknown =
        json!({"name": "x", "on": {"telemetry": {}}, "condition": "true", "severity": "info", "nope": 1});
    assert!(serde_json::from_value::<RuleDraft>(unknown).unwrap_err().to_string().contains("nope"));
}

#[tokio::test]
async fn a_tenants_rules_are_bounded_and_paged() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = service(dir.path());
    for n in 0..RULES_PER_TENANT_MAX {
        service.create(&me(), &acme(), draft(&format!("rule {n}"))).await.unwrap();
    }
    let refused = service.create(&me(), &acme(), draft("one more")).await.unwrap_err();
    assert!(matches!(refused, RuleError::TooMany));
    assert_eq!(refused.to_string(), "the tenant has 1000 rules, which is the most");
    let first = service.list(&acme(), "", 600).await.unwrap();
    let rest = service.list(&acme(), &first[599].id, 600).await.unwrap();
    assert_eq!((first.len(), rest.len()), (600, 400));
}
