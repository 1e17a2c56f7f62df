//! How a provisioned device connects to the operational listener.

use std::sync::Arc;

use assay_mqtt::rumqttc::v5::{AsyncClient, EventLoop};
use assay_mqtt::{BrokerUrl, Client, Login, connect, connect_with_login};
use assay_wire::DeviceClientId;
use rustls::ClientConfig;

use crate::error::Error;

/// Connects under this client id, with `password` or by the certificate in `tls`.
pub(crate) fn dial(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    id: &DeviceClientId,
    password: Option<String>,
) -> (AsyncClient, EventLoop) {
    let settings =
        Client { id: id.to_string(), window: WINDOW, receive_maximum: WINDOW, manual_acks: false };
    match password {
        Some(password) => {
            let login = Login { user_name: id.device.to_string(), password };
            connect_with_login(broker, tls, settings, login)
        }
        None => connect(broker, tls, settings),
    }
}

/// Refuses a listener without TLS: a device would show its token to everybody on the way.
pub(crate) fn refuse_plain(broker: &BrokerUrl) -> Result<(), Error> {
    if broker.is_tls() {
        return Ok(());
    }
    Err(Error::Usage(
        "a device signs in over TLS: the broker's URL must begin with mqtts://".into(),
    ))
}

/// A message or two are under way. The rest is room for what rumqttc sends itself.
const WINDOW: u16 = 10;
