//! Through an HTTP proxy and a SOCKS5 proxy, with and without a password.

use super::*;
use crate::social::proxy::Way;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// A proxy that tunnels to whatever it is asked for, and counts.
async fn http_proxy(password: Option<&'static str>) -> (String, Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            if let Some(password) = password
                && !head.contains(&format!("\r\nProxy-Authorization: Basic {password}\r\n"))
            {
                client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.unwrap();
                continue;
            }
            let place = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
            let mut server = TcpStream::connect(place).await.unwrap();
            client.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n").await.unwrap();
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    (address, served)
}

/// As RFC 1928 and 1929 have it, with names only.
async fn socks_proxy(password: Option<(&'static [u8], &'static [u8])>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut greeting = [0; 3];
            client.read_exact(&mut greeting).await.unwrap();
            let wanted = if password.is_some() { 2 } else { 0 };
            if greeting != [5, 1, wanted] {
                client.write_all(&[5, 0xFF]).await.unwrap();
                continue;
            }
            client.write_all(&[5, wanted]).await.unwrap();
            if let Some((user, word)) = password {
                let mut message = vec![0; 3 + user.len() + word.len()];
                client.read_exact(&mut message).await.unwrap();
                let right = [&[1, u8::try_from(user.len()).unwrap()], user, &[u8::try_from(word.len()).unwrap()], word]
                    .concat();
                let verdict = u8::from(message != right);
                client.write_all(&[1, verdict]).await.unwrap();
                if verdict != 0 {
                    continue;
                }
            }
            let mut head = [0; 5];
            client.read_exact(&mut head).await.unwrap();
            assert_eq!(head[..4], [5, 1, 0, 3]);
            let mut name = vec![0; usize::from(head[4])];
            client.read_exact(&mut name).await.unwrap();
            let port = client.read_u16().await.unwrap();
            match TcpStream::connect((std::str::from_utf8(&name).unwrap(), port)).await {
                Err(_) => client.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap(),
                Ok(mut server) => {
                    client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 4, 56]).await.unwrap();
                    tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
                }
            }
        }
    });
    address
}

/// The collector through a proxy of this address.
fn client(server: &Server, proxy: &str) -> Arc<dyn Receiver> {
    let mut common = server.common(30);
    common.link.proxy = Proxy::Through(Way::parse(proxy).unwrap());
    Arc::new(Mastodon::new(&server.url).common(common))
}

#[tokio::test]
async fn streams_come_through_proxies() {
    let (plain, served) = http_proxy(None).await;
    let (closed, _) = http_proxy(Some("YWRhOnBAc3M=")).await;
    let (socks, secret) = (socks_proxy(None).await, socks_proxy(Some((b"ada", b"p@ss"))).await);
    for proxy in [
        format!("http://{plain}"),
        format!("http://ada:p%40ss@{closed}"),
        format!("socks5://{socks}"),
        format!("socks5://ada:p%40ss@{secret}"),
    ] {
        let server = serve(plan(Network::Mastodon, 5)).await;
        let running = server.start(client(&server, &proxy), None);
        server.stage.opened(1).await;
        server.stage.publish(5);
        running.intake.until(|heard| heard.records.len() == 5).await;
        running.end().await;
    }
    assert_eq!(served.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_told_without_its_password() {
    let (closed, _) = http_proxy(Some("YWRhOnBAc3M=")).await;
    let (socks, secret) = (socks_proxy(None).await, socks_proxy(Some((b"ada", b"p@ss"))).await);
    for (proxy, why) in [
        (format!("http://ada:hunter2@{closed}"), "407"),
        (format!("socks5://ada:hunter2@{secret}"), "refused the user or the password"),
        (format!("socks5://{secret}"), "wants a user and a password"),
        (format!("socks5://ada:hunter2@{socks}"), "does not take users"),
        ("http://127.0.0.1:1".to_string(), "can't be reached"),
    ] {
        let server = serve(plan(Network::Mastodon, 0)).await;
        let running = server.start(client(&server, &proxy), None);
        let state = running.says("reconnecting").await;
        assert!(state.contains(why) && !state.contains("hunter2"), "{state}");
        assert!(server.stage.asked().is_empty());
        running.end().await;
    }
}
