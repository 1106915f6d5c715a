//! The demonstration: what `casebook demo` records in a real server, again and again, and the commands that it prints.

use crate::help::page;
use crate::readme::folder_of;
use crate::world::World;
use casebook::demo::{Options, record};
use casebook::pb;
use time::{Duration, OffsetDateTime};
use tokio::process::Command;

const COUNT: usize = 230;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_790_000_000).expect("a time")
}

fn options(address: &str, count: usize) -> Options {
    Options { address: address.to_owned(), count, ..Options::default() }
}

/// The tenant's decisions and overrides, counted.
async fn counted(world: &World) -> (i64, i64) {
    let page = page(1).map(|page| pb::PageRequest { include_total_size: true, ..page });
    let decisions = pb::ListDecisionsRequest { page: page.clone(), ..Default::default() };
    let overrides =
        pb::ListOverridesRequest { page, decision_id: "-".to_owned(), ..Default::default() };
    let of = |page: Option<pb::PageInfo>| page.expect("a page").total_size;
    let decisions = of(ok!(world.decisions().list_decisions(decisions)).page);
    (decisions, of(ok!(world.decisions().list_overrides(overrides)).page))
}

#[tokio::test]
async fn a_second_run_finds_everything_there() {
    let world = World::new().await;
    let address = world.address.clone();
    let first = record(&options(&address, COUNT), now()).await.expect("a first run");
    let overrides = first.overrides_created;
    assert!(overrides > 0);
    assert_eq!((first.decisions_created, first.decisions_present), (COUNT, 0));
    assert_eq!((first.overrides_present, first.overrides_skipped), (0, 0));
    assert_eq!((first.rules_created, first.rules_present), (52, 0));
    assert_eq!(first.verdicts.values().sum::<usize>(), COUNT);
    assert_eq!(counted(&world).await, (COUNT as i64, overrides as i64));

    // In the same hour the content is equal; in the next one its times differ and the first run stands.
    for later in [Duration::ZERO, Duration::hours(1)] {
        let again = record(&options(&address, COUNT), now() + later).await.expect("another run");
        assert_eq!((again.decisions_created, again.decisions_present), (0, COUNT), "{later}");
        assert_eq!((again.overrides_created, again.overrides_present), (0, overrides), "{later}");
        assert_eq!((again.rules_created, again.rules_present), (0, 52), "{later}");
        assert_eq!(counted(&world).await, (COUNT as i64, overrides as i64), "{later}");
    }
    // A longer run goes on where the shorter one ended, within a batch as well.
    let mut before = COUNT;
    for (count, later) in [(300, Duration::ZERO), (420, Duration::hours(2))] {
        let more = record(&options(&address, count), now() + later).await.expect("a longer run");
        assert_eq!((more.decisions_created, more.decisions_present), (count - before, before));
        assert_eq!(counted(&world).await.0, count as i64);
        before = count;
    }
    world.close().await;
}

#[tokio::test]
async fn the_commands_that_it_prints_work() {
    let world = World::new().await;
    let with_token = Options {
        token: Some("cbk_secret".to_owned()),
        tenant: Some("default".to_owned()),
        ..options(&world.address.clone(), 60)
    };
    let summary = record(&with_token, OffsetDateTime::now_utc()).await.expect("a run");
    let text = summary.to_string();
    assert!(!text.contains("cbk_secret"), "{text}");
    assert!(text.contains("decisions") && text.contains('#'));
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", folder_of("grpcurl").display());
    for (command, holds) in summary.commands().iter().zip(["avgConfidence", "demo-", "reviewerId"])
    {
        assert!(text.contains(command.as_str()), "{text}");
        let ran = Command::new("sh")
            .args(["-euc", command])
            .env("PATH", &path)
            .env("CASEBOOK_TOKEN", "cbk_secret")
            .output()
            .await
            .expect("a shell");
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
        assert!(said.contains(holds), "{command}: {said}");
    }
    world.close().await;
}
