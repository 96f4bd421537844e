//! A name server whose answers a test decides.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

const HEADER: usize = 12;
const KIND_A: u16 = 1;
const KIND_AAAA: u16 = 28;

/// What it answers: the addresses of a name the first time it is asked for, the second time, and so on; the last stays.
pub type Answers = BTreeMap<&'static str, Vec<Vec<IpAddr>>>;

/// A name server on a port of this machine. Answers may not be kept.
pub struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl NameServer {
    /// Starts it.
    pub fn start(answers: Answers) -> Self {
        Self::slow(answers, Duration::ZERO)
    }

    /// Starts one that takes its time for each answer.
    pub fn slow(answers: Answers, takes: Duration) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port for a name server");
        let address = socket.local_addr().expect("its address");
        let asked = Arc::<Mutex<BTreeMap<String, usize>>>::default();
        let counts = asked.clone();
        thread::spawn(move || {
            let mut query = [0; 2_048];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let Some((name, kind, end)) = question(&query[..length]) else { continue };
                let mut counts = counts.lock().expect("the counts");
                let count = counts.entry(name.clone()).or_default();
                let told = answers.get(name.as_str()).and_then(|told| told.get((*count).min(told.len() - 1)));
                if kind == KIND_A {
                    *count += 1;
                }
                drop(counts);
                thread::sleep(takes);
                let _gone = socket.send_to(&answer(&query[..end], kind, told), from);
            }
        });
        Self { address, asked }
    }

    /// Where it listens, as a flag takes it.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// How often it was asked for the address of a name.
    pub fn asked_for(&self, name: &str) -> usize {
        self.asked.lock().expect("the counts").get(name).copied().unwrap_or(0)
    }

    /// Every name that it was asked for.
    pub fn all_asked(&self) -> Vec<String> {
        self.asked.lock().expect("the counts").keys().cloned().collect()
    }
}

/// The name in small letters, what is asked of it, and where the question ends.
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}

fn answer(question: &[u8], kind: u16, told: Option<&Vec<IpAddr>>) -> Vec<u8> {
    let mut answer = question.to_vec();
    let records: Vec<Vec<u8>> = told.into_iter().flatten().filter_map(|address| record(kind, *address)).collect();
    let no_such_name = if told.is_none() { 3 } else { 0 };
    (answer[2], answer[3]) = (0x84, no_such_name);
    answer[6..HEADER].fill(0);
    answer[7] = records.len() as u8;
    answer.extend(records.concat());
    answer
}

/// A record of the name of the question, to be kept for no time.
fn record(kind: u16, address: IpAddr) -> Option<Vec<u8>> {
    let data = match address {
        IpAddr::V4(address) if kind == KIND_A => address.octets().to_vec(),
        IpAddr::V6(address) if kind == KIND_AAAA => address.octets().to_vec(),
        _ => return None,
    };
    let mut record = vec![0xc0, HEADER as u8];
    record.extend(kind.to_be_bytes());
    record.extend([0, 1, 0, 0, 0, 0]);
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    Some(record)
}
