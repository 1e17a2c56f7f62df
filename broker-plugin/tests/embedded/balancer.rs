//! Connections that a balancer passes on, with a header of PROXY protocol 2.

use super::*;

/// HAProxy's proxy-protocol.txt, 2.2: `PROXY`, TCP over IPv4, from this address.
fn from(source: [u8; 4]) -> Vec<u8> {
    let addresses = [&source[..], &[127, 0, 0, 1], &[0xc3, 0x50], &[0x22, 0xb3]].concat();
    header(0x21, 0x11, &addresses)
}

fn header(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[version_and_command, family], &length, rest].concat()
}

/// Whether a client gets as far as its CONNACK.
async fn is_served(world: &World, stream: TcpStream) -> bool {
    let Ok(mut raw) = Raw::over(stream, &world.anonymous).await else { return false };
    raw.connect(&Connect::new(&fresh_client())).await == Some(SUCCESS)
}

#[tokio::test]
async fn client_behind_a_balancer_counts_by_its_own_address() {
    let limits = Limits { arrivals_per_network: 1, ..limits() };
    let world = World::behind_a_balancer(limits).await;
    // Five may come at once from one network, and one more in the second after.
    let mut served = 0;
    for _ in 0..12 {
        served += u32::from(is_served(&world, world.passed_on(&from([192, 0, 2, 1])).await).await);
    }
    assert!((5..=8).contains(&served), "{served}");
    for n in 2..12 {
        assert!(is_served(&world, world.passed_on(&from([192, 0, 2, n])).await).await, "{n}");
    }
    let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 28], &[0xc3, 0x50, 0x22, 0xb3]].concat();
    let tlvs = [&v6[..], &[4, 0, 200], &[0; 200]].concat();
    assert!(is_served(&world, world.passed_on(&header(0x21, 0x21, &tlvs)).await).await);
}

#[tokio::test]
async fn balancer_that_asks_for_itself_is_served_under_its_own_address() {
    let world = World::behind_a_balancer(limits()).await;
    assert!(is_served(&world, world.passed_on(&header(0x20, 0, &[])).await).await);
}

#[tokio::test]
async fn connection_of_a_balancer_without_a_header_is_closed() {
    let world = World::behind_a_balancer(limits()).await;
    for wrong in [
        b"".to_vec(),
        b"PROXY TCP4 192.0.2.1 127.0.0.1 50000 8883\r\n".to_vec(),
        header(0x31, 0x11, &[0; 12]),
        header(0x21, 0x31, &[0; 216]),
        header(0x21, 0x11, &[0; 8]),
        header(0x21, 0x11, &[0; 1100]),
    ] {
        assert!(!is_served(&world, world.passed_on(&wrong).await).await, "{wrong:?}");
    }
    // One that says too little is given up in time.
    let mut slow = world.passed_on(&from([192, 0, 2, 1])[..20]).await;
    let mut byte = [0];
    let ended = timeout(INTRODUCTION + PATIENCE, slow.read(&mut byte)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    assert!(is_served(&world, world.passed_on(&from([192, 0, 2, 1])).await).await);
}

/// Otherwise everybody could come from everywhere.
#[tokio::test]
async fn header_of_somebody_else_is_not_believed() {
    let world = World::behind_a_balancer(limits()).await;
    let mut stream = TcpStream::connect(world.bootstrap()).await.unwrap();
    stream.write_all(&from([192, 0, 2, 1])).await.unwrap();
    assert!(!is_served(&world, stream).await);
    // Who connects without the balancer is served as ever.
    assert!(is_served(&world, TcpStream::connect(world.bootstrap()).await.unwrap()).await);
}
