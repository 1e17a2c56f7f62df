//! `/api/v1`: what an operator reads and does from another machine, and that nobody else does.

use std::fs;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, AssayServer, Device, EkKind, Swtpm, run, spawn, trusted_vendor};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Caller, HTTPS, OPERATOR, PLAIN};
use crate::lab::Lab;

#[test]
fn an_operator_sees_who_waits_and_approves_them_and_the_audit_says_who_did_it() -> Result<()> {
    let desk = Desk::asking()?;
    let devices: Vec<_> = desk.tpms.iter().map(Device::new).collect::<Result<_>>()?;
    let waiting: Vec<_> = devices.iter().map(|it| desk.provisions(it)).collect::<Result<_>>()?;
    let rows = desk.until("/pending", |page| items(page).len() == 3)?;
    let first = items(&rows)[0].clone();
    let ek = first["ek_id"].as_str().context("an EK")?;
    let manufacturer = first["manufacturer"].as_str().context("a manufacturer")?;
    let page = desk.gets(&format!("/pending?limit=2&manufacturer={manufacturer}"))?;
    let next = page["next"].as_str().context("another page")?;
    ensure!(items(&page).len() == 2);
    ensure!(items(&desk.gets(&format!("/pending?cursor={next}"))?).len() == 1);
    ensure!(items(&desk.gets("/pending?manufacturer=id:00000000")?).is_empty());

    let one = json!({ "eks": [ek], "name": "pump-17" });
    let dry = json!({ "eks": [ek], "name": "pump-17", "dry_run": true });
    let expected = json!([{ "ek_id": ek, "device_id": "pump-17" }]);
    ensure!(desk.does("/pending/approve", &dry)?["approved"] == expected);
    ensure!(items(&desk.gets("/pending")?).len() == 3, "it was not done");
    ensure!(desk.does("/pending/approve", &one)?["approved"] == expected);
    let taken = json!({ "all": true, "as_asked": true, "name": "x" });
    desk.refused("/pending/approve", &taken, 400, "exclude each other")?;
    desk.refused("/pending/approve", &one, 409, "no EK")?;
    desk.refused("/pending/approve", &json!({}), 409, "no EK waits that is meant")?;
    let others = desk.does("/pending/approve", &json!({ "all": true, "name": "pump-{n}" }))?;
    ensure!(others["approved"].as_array().context("a list")?.len() == 2, "{others}");
    for child in waiting {
        ensure!(child.wait_with_output()?.status.success());
    }
    let names = |page: &Value| items(page).iter().map(|row| row["device_id"].clone()).collect();
    let names: Vec<Value> = names(&desk.gets("/devices")?);
    ensure!(names == ["pump-1", "pump-17", "pump-2"], "{names:?}");
    let approvals: Vec<_> = decisions(&desk, "approve")?;
    ensure!(approvals.len() == 3 && approvals[0]["due_device_id"] == "pump-17", "{approvals:?}");
    ensure!(approvals.iter().all(|row| row["client"] == "cert:alice"), "{approvals:?}");

    // Pages and filters of what is there now.
    let page = desk.gets("/devices?limit=2")?;
    ensure!(items(&page).len() == 2 && page["next"] == "pump-2", "{page}");
    let last = desk.gets("/devices?limit=2&cursor=pump-2")?;
    ensure!(items(&last).len() == 1 && last["next"].is_null(), "{last}");
    for (filter, found) in [
        ("devices?status=enabled", 3),
        ("devices?status=disabled", 0),
        ("devices?expiring_before=2027-01-01T00:00:00Z", 0),
        ("devices?expiring_before=2099-01-01T00:00:00Z&assurance=vendor", 0),
        ("certificates?status=active", 3),
        ("certificates?status=revoked", 0),
        ("certificates?expiring_before=2099-01-01T00:00:00Z", 3),
    ] {
        let page = desk.gets(&format!("/{filter}"))?;
        ensure!(items(&page).len() == found, "{filter}: {page}");
    }
    let whole = desk.gets("/devices/pump-17")?;
    let certificate = &whole["certificates"][0];
    let serial = certificate["serial"].as_str().context("a serial number")?;
    ensure!(whole["device"]["serial"] == serial && whole["ek"]["ek_id"] == ek, "{whole}");
    ensure!(desk.gets(&format!("/devices/{ek}"))? == whole);
    ensure!(desk.gets(&format!("/certificates/{serial}"))? == *certificate);
    for list in ["groups", "trust", "identities"] {
        ensure!(!items(&desk.gets(&format!("/{list}"))?).is_empty(), "{list}");
    }
    for missing in ["/devices/pump-9", "/certificates/00", "/nothing"] {
        desk.alice.asks(&format!("/api/v1{missing}"), &[])?.is(404, "there is no")?;
    }
    desk.alice.asks("/api/v1/devices?colour=red", &[])?.is(400, "unknown field")
}

#[test]
fn a_device_that_an_operator_disables_is_refused_until_it_is_enabled_and_goes_when_it_is_removed()
-> Result<()> {
    let desk = Desk::open()?;
    let device = Device::new(&desk.tpms[0])?;
    desk.lab.enroll(&desk.tpms[0], EkKind::P256, "pump-17", &[])?;
    desk.lab.provision(&device, &[])?;
    let publishes = || -> Result<bool> {
        let publish =
            device.publish(&desk.lab.dir, &desk.lab.server, "telemetry", "1")?.output()?;
        Ok(publish.status.success())
    };
    ensure!(publishes()?);
    let changed = desk.does("/devices/pump-17/disable", &json!({}))?;
    ensure!(changed["ek"]["disabled"] == true && !publishes()?, "{changed}");
    ensure!(items(&desk.gets("/devices?status=disabled")?).len() == 1);
    let changed = desk.does("/devices/pump-17/enable", &json!({}))?;
    ensure!(changed["ek"]["disabled"] == false && publishes()?, "{changed}");
    let changed = desk.does("/devices/pump-17/remove", &json!({}))?;
    ensure!(changed["ek"].is_null() && !publishes()?, "{changed}");
    ensure!(items(&desk.gets("/devices")?).is_empty());
    desk.refused("/devices/pump-17/remove", &json!({}), 404, "there is no device")?;
    let ek = changed["ek_id"].as_str().context("an EK")?;
    desk.refused(&format!("/devices/{ek}/remove"), &json!({}), 409, "knows nothing of EK")?;
    for action in ["disable", "enable", "remove"] {
        let rows = decisions(&desk, action)?;
        ensure!(rows.len() == 1 && rows[0]["client"] == "cert:alice", "{rows:?}");
        ensure!(rows[0]["due_device_id"] == "pump-17" && rows[0]["ek_id"] == ek, "{rows:?}");
    }
    let printed = desk.lab.assay(&["audit"])?.stdout;
    ensure!(String::from_utf8(printed)?.contains("by cert:alice"));
    Ok(())
}

#[test]
fn the_api_is_for_operators_that_are_good_now_and_for_nobody_else() -> Result<()> {
    let desk = Desk::open()?;
    let (lab, place) = (&desk.lab, &desk.place);
    let devices = |caller: &Caller| caller.asks("/api/v1/devices", &[]);
    devices(&Caller::nobody(lab)?)?.is(401, "show a certificate")?;
    let backend = ["--subscribe", "device/#"];
    devices(&Caller::identity(lab, "sink", &backend, place)?)?.is(403, "not for")?;
    devices(&Caller::with(lab, &lab.dir.path().join("worker.pem"))?)?.is(403, "not for")?;
    let bob = Caller::identity(lab, "bob", OPERATOR, place)?;
    devices(&bob)?.is(200, "items")?;
    // One who holds a connection open is asked again all the same.
    let revoked = desk.does("/identities/bob/revoke", &json!({}))?;
    ensure!(revoked == json!({ "name": "bob", "revoked": 1 }), "{revoked}");
    devices(&bob)?.is(403, "revoked")?;
    ensure!(decisions(&desk, "revoke-identity")?[0]["client"] == "cert:alice");
    desk.refused("/identities/operator/revoke", &json!({}), 409, "shut out")?;
    desk.refused("/identities/eve/revoke", &json!({}), 404, "no identity")?;
    // The description is no secret.
    Caller::nobody(lab)?.asks("/api/v1/openapi.json", &[])?.is(200, "\"3.1.0\"")?;

    let other = AssayDir::init()?;
    let elsewhere = Caller::with(lab, &other.path().join("operator.pem"))?;
    ensure!(devices(&elsewhere)?.status == 0, "another CA's operator gets through no handshake");
    let plain = Lab::with_settings(PLAIN)?;
    devices(&Caller::nobody(&plain)?)?.is(403, "known by TLS")
}

#[test]
fn what_no_operator_could_have_meant_is_refused_and_does_nothing() -> Result<()> {
    let desk = Desk::open()?;
    desk.lab.enroll(&desk.tpms[0], EkKind::P256, "pump-17", &[])?;
    let disable = "/api/v1/devices/pump-17/disable";
    // A page of another site can have a browser send these, with the operator's certificate.
    for kind in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"] {
        let header = format!("Content-Type: {kind}");
        desk.alice
            .asks(disable, &["--data", "{}", "--header", &header])?
            .is(415, "application/json")?;
    }
    desk.alice.asks(disable, &["--request", "POST"])?.is(415, "application/json")?;
    desk.alice.asks(disable, &[])?.is(405, "not by this method")?;
    desk.refused("/devices/pump-17/disable", &json!({ "why": "x" }), 422, "unknown field")?;
    desk.refused("/pending/approve", &json!({ "eks": "all" }), 422, "eks")?;
    let long = json!({ "eks": ["0".repeat(1024 * 1024)] });
    let file = desk.place.path().join("long");
    fs::write(&file, long.to_string())?;
    let from = format!("@{}", file.to_str().context("a path")?);
    desk.alice
        .asks("/api/v1/pending/approve", &[JSON, "--data-binary", &from])?
        .is(413, "64 KiB")?;
    let row = desk.gets("/devices/pump-17")?;
    ensure!(row["ek"]["disabled"] == false && decisions(&desk, "disable")?.is_empty(), "{row}");
    Ok(())
}

/// A CA, and Alice, who operates it from elsewhere.
struct Desk {
    lab: Lab,
    tpms: Vec<Swtpm>,
    alice: Caller,
    place: TempDir,
    description: Value,
}

const JSON: &str = "-HContent-Type: application/json";

impl Desk {
    fn open() -> Result<Self> {
        Self::of(Lab::with_settings(HTTPS)?)
    }

    /// As `assay init` makes it: it asks about devices of the vendor.
    fn asking() -> Result<Self> {
        let (dir, vendor) = (AssayDir::init()?, trusted_vendor()?);
        fs::write(dir.path().join("assay.toml"), HTTPS)?;
        run(dir.assay(&["trust", "add"])?.arg(vendor.root_pem()).arg(vendor.intermediate_pem()))?;
        Self::of(Lab { server: AssayServer::start(&dir)?, dir })
    }

    fn of(lab: Lab) -> Result<Self> {
        let place = tempfile::tempdir()?;
        let alice = Caller::identity(&lab, "alice", OPERATOR, &place)?;
        let description = alice.asks("/api/v1/openapi.json", &[])?;
        let description = serde_json::from_slice(&description.body)?;
        let tpms = trusted_vendor()?.devices(EkKind::P256, 3)?;
        Ok(Self { lab, tpms, alice, place, description })
    }

    fn provisions(&self, device: &Device) -> Result<Child> {
        let mut provision = device.provision(&self.lab.dir, &self.lab.server)?;
        provision.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(spawn(provision)?)
    }

    /// What Alice reads, which is as the description says.
    fn gets(&self, path: &str) -> Result<Value> {
        let answer = self.alice.asks(&format!("/api/v1{path}"), &[])?;
        ensure!(answer.status == 200, "{path}: {}: {}", answer.status, answer.text());
        let value = serde_json::from_slice(&answer.body)?;
        self.is_as_described(path, "get", &value)?;
        Ok(value)
    }

    fn until(&self, path: &str, is_there: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let page = self.gets(path)?;
            if is_there(&page) {
                return Ok(page);
            }
            ensure!(Instant::now() < deadline, "{page}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What Alice does, which must succeed and be answered as the description says.
    fn does(&self, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let answer = self.alice.asks(&format!("/api/v1{path}"), &[JSON, "--data", &body])?;
        ensure!(answer.status == 200, "{path}: {}: {}", answer.status, answer.text());
        let value = serde_json::from_slice(&answer.body)?;
        self.is_as_described(path, "post", &value)?;
        Ok(value)
    }

    fn refused(&self, path: &str, body: &Value, status: u16, said: &str) -> Result<()> {
        let body = body.to_string();
        let answer = self.alice.asks(&format!("/api/v1{path}"), &[JSON, "--data", &body])?;
        answer.is(status, said)?;
        let problem = &self.description["components"]["schemas"]["Problem"];
        self.fits(&serde_json::from_slice(&answer.body)?, problem).context(path.to_owned())
    }

    fn is_as_described(&self, path: &str, method: &str, value: &Value) -> Result<()> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let paths = self.description["paths"].as_object().context("paths")?;
        let fits = |described: &str| {
            let (described, path) = (described.split('/'), path.split('/'));
            described.clone().count() == path.clone().count()
                && described.zip(path).all(|(it, is)| it.starts_with('{') || it == is)
        };
        let mut found: Vec<_> = paths.keys().filter(|described| fits(described)).collect();
        // One without a parameter goes first.
        found.sort_by_key(|described| described.matches('{').count());
        let described = found.first().with_context(|| format!("{path} is not described"))?;
        let response = &paths[*described][method]["responses"]["200"];
        let schema = &response["content"]["application/json"]["schema"];
        self.fits(value, schema).with_context(|| format!("{method} {path}: {value}"))
    }

    /// As much of JSON Schema as the description uses.
    fn fits(&self, value: &Value, schema: &Value) -> Result<()> {
        if let Some(name) = schema["$ref"].as_str() {
            let pointer = name.trim_start_matches('#');
            return self.fits(value, self.description.pointer(pointer).context("a reference")?);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            ensure!(choices.iter().any(|it| self.fits(value, it).is_ok()), "{value}: {schema}");
            return Ok(());
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let is_kind = |it: &Value| *it == *kind;
        let is_of_kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().any(is_kind),
            one => is_kind(one),
        };
        ensure!(is_of_kind, "{value} is none of {}", schema["type"]);
        if let Some(among) = schema["enum"].as_array() {
            ensure!(among.contains(value), "{value} is not among {among:?}");
        }
        if let Some(rows) = value.as_array() {
            return rows.iter().try_for_each(|row| self.fits(row, &schema["items"]));
        }
        let (Some(fields), Some(described)) = (value.as_object(), schema["properties"].as_object())
        else {
            return Ok(());
        };
        for name in schema["required"].as_array().into_iter().flatten() {
            ensure!(fields.contains_key(name.as_str().context("a name")?), "no {name}");
        }
        for (name, field) in fields {
            let schema = described.get(name).with_context(|| format!("{name} is not described"))?;
            self.fits(field, schema).with_context(|| name.clone())?;
        }
        Ok(())
    }
}

fn items(page: &Value) -> &[Value] {
    page["items"].as_array().map_or(&[], Vec::as_slice)
}

fn decisions(desk: &Desk, action: &str) -> Result<Vec<Value>> {
    let page = desk.gets("/audit?count=1000")?;
    Ok(items(&page).iter().filter(|row| row["action"] == action).cloned().collect())
}
