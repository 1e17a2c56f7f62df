//! Several connections of one device: each has a name, and all have the device's rights and limits.

use super::*;

/// Connections of one device beside the one that is not named.
const MOST: usize = 8;

impl World {
    /// A connection of pump-17, with another client id than the device id.
    async fn pump(&self, client: &str) -> Raw {
        self.identified("urn:assay:device:default:pump-17", client).await
    }

    async fn pump_is_answered(&self, client: &str) -> u8 {
        let credential = self.pki.client(&["urn:assay:device:default:pump-17"]);
        self.operational_connect(Some(&credential), &Connect::new(client)).await.unwrap().1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn named_connections_stay_beside_each_other_and_the_device_and_each_ends_only_its_own() {
    let world = World::new().await;
    let mut device = world.device("pump-17").await;
    let mut first = world.pump("pump-17/node-red").await;
    let mut second = world.pump("pump-17/logger").await;
    let mut again = world.pump("pump-17/node-red").await;
    assert_eq!(first.end().await, Ok(Some(SESSION_TAKEN_OVER)));
    for connection in [&mut device, &mut second, &mut again] {
        assert!(connection.is_alive().await);
        let filter = "device/v1/default/pump-17/command";
        assert_eq!(connection.subscribe(filter).await, Some(GRANTED_QOS_1));
    }
    let mut operator = world.operator().await;
    assert_eq!(operator.publish("device/v1/default/pump-17/command", b"now").await, Some(SUCCESS));
    for connection in [&mut device, &mut second, &mut again] {
        assert_eq!(connection.message(PATIENCE).await.unwrap().payload, b"now");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn named_connection_speaks_and_hears_in_the_devices_own_tree_only() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/#").await, Some(GRANTED_QOS_1));
    let mut named = world.pump("pump-17/pump-18").await;
    for topic in ["device/v1/default/pump-18/x", "fleet/v1/default/pump-17/event", "x"] {
        assert_eq!(named.publish(topic, b"forged").await, Some(NOT_AUTHORIZED), "{topic}");
    }
    for filter in ["device/v1/default/pump-18/#", "device/#", SHARED_REQUESTS] {
        assert_eq!(named.subscribe(filter).await, Some(NOT_AUTHORIZED), "{filter}");
    }
    assert_eq!(named.publish("device/v1/default/pump-17/x", b"21").await, Some(SUCCESS));
    assert_eq!(operator.message(PATIENCE).await.unwrap().payload, b"21");
    assert_eq!(operator.message(SILENCE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_id_that_names_another_device_or_no_connection_is_refused() {
    let world = World::new().await;
    for client in ["pump-18/pump-17", "pump-18/x", "pump-17/", "pump-17/a/b", "pump-17/a:b"] {
        assert_eq!(world.pump_is_answered(client).await, CLIENT_ID_NOT_VALID, "{client}");
    }
    assert_eq!(world.pump_is_answered("pump-17/a").await, SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_has_so_many_named_connections_and_one_that_is_not_named() {
    let world = World::new().await;
    let mut held = Vec::new();
    for number in 0..MOST {
        held.push(world.pump(&format!("pump-17/{number}")).await);
    }
    assert_eq!(world.pump_is_answered("pump-17/more").await, SERVER_BUSY);
    for connection in &mut held {
        assert!(connection.is_alive().await, "nobody was cut for it");
    }
    let mut device = world.device("pump-17").await;
    let _other = world.identified("urn:assay:device:default:pump-18", "pump-18/0").await;
    let mut again = world.pump("pump-17/0").await;
    assert!(device.is_alive().await && again.is_alive().await);
    held.pop();
    tokio::time::sleep(SILENCE).await;
    let mut freed = world.pump("pump-17/more").await;
    assert!(freed.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_device_are_counted_over_all_its_named_connections() {
    let world = World::new().await;
    let _worker = world.answering_worker(b"reply".to_vec()).await;
    let mut accepted = 0;
    'connections: for number in 0..MOST {
        let mut named = world.pump(&format!("pump-17/{number}")).await;
        for _ in 0..10 {
            if named.publish(&request_topic("pump-17"), b"request").await != Some(SUCCESS) {
                break 'connections;
            }
            accepted += 1;
        }
    }
    assert_eq!(accepted, 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_device_are_counted_whatever_their_names() {
    let world = World::new().await;
    let mut answers = Vec::new();
    while answers.len() < 200 && !answers.contains(&CONNECTION_RATE_EXCEEDED) {
        let client = format!("pump-17/{}", answers.len());
        answers.push(world.pump_is_answered(&client).await);
    }
    assert_eq!(answers.last(), Some(&CONNECTION_RATE_EXCEEDED));
}

#[tokio::test(flavor = "multi_thread")]
async fn named_connection_leaves_a_will_for_the_devices_presence_and_nothing_else() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    assert_eq!(operator.subscribe("device/#").await, Some(GRANTED_QOS_1));
    let credential = world.pki.client(&["urn:assay:device:default:pump-17"]);
    let with_will = |topic| Connect { will: Some((topic, false)), ..Connect::new("pump-17/x") };
    for topic in ["device/v1/default/pump-17/x/presence", "device/v1/default/pump-17/x"] {
        let answer = world.operational_connect(Some(&credential), &with_will(topic)).await;
        assert_eq!(answer.unwrap().1, NOT_AUTHORIZED, "{topic}");
    }
    let presence = "device/v1/default/pump-17/presence";
    let (named, answer) =
        world.operational_connect(Some(&credential), &with_will(presence)).await.unwrap();
    assert_eq!(answer, SUCCESS);
    drop(named);
    assert_eq!(operator.message(PATIENCE).await.unwrap().topic, presence);
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_cuts_every_connection_of_the_device_and_nobody_elses() {
    let revoked = Arc::new(AtomicBool::new(false));
    let world = World::with(limits(), all_but_pump_17_if(&revoked)).await;
    let mut all = vec![world.device("pump-17").await];
    for number in 0..MOST {
        all.push(world.pump(&format!("pump-17/{number}")).await);
    }
    let mut other = world.identified("urn:assay:device:default:pump-18", "pump-18/0").await;
    revoked.store(true, Ordering::SeqCst);
    world.broker.recheck();
    for connection in &mut all {
        connection.end().await.unwrap();
    }
    assert!(other.is_alive().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_cuts_every_connection_of_the_device() {
    let world = World::new().await;
    let credential =
        world.pki.client_expiring_in("urn:assay:device:default:pump-17", Duration::from_secs(3));
    let mut all = Vec::new();
    for client in ["pump-17", "pump-17/a", "pump-17/b"] {
        all.push(world.connected_with(&credential, client).await);
    }
    for connection in &mut all {
        assert!(connection.is_alive().await);
    }
    for connection in &mut all {
        connection.end().await.unwrap();
    }
}
