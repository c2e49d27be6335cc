//! How fast a pod may send and get: a token bucket (`tbf`) at the link's end outside for what it gets; for what it sends, one at
//! an `ifb` of its own, by which `guard` leads what it lets in. By `tc` it would be led past `guard`: what comes back
//! from an `ifb` meets no chain of the link any more.

use futures::StreamExt;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::{Error, Handle, LinkIfb};

use super::types::{Bandwidth, NetworkError};
use super::{Network, link, outside};

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64` and `TCA_TBF_BURST` (`include/uapi/linux/pkt_sched.h`).
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;
/// A burst holds what comes in a fiftieth of a second, and the largest frame of any network.
const PER_BURST: u64 = 50;
const LEAST_BURST: u64 = 16 * 1024;
/// What waits for its turn is this much of a second behind, or so many bytes: TCP needs room for some packets, and what is more
/// would only make it slow.
const PER_QUEUE: u64 = 40;
const LEAST_QUEUE: u64 = 32 * 1024;

/// Name of what a sandbox's packets go through: 15 bytes.
pub(super) fn shaper(sandbox: &str) -> String {
    format!("ifb-{}", &sandbox[..sandbox.len().min(11)])
}

/// What a token bucket is made of, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    rate: u64,
    burst: u32,
    limit: u32,
}

impl Bucket {
    /// Of bits a second, for packets of that MTU.
    pub fn of(bits: u64, mtu: u32) -> Self {
        let rate = (bits / 8).max(1);
        let bound = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
        // with the header of Ethernet, and a tag
        let burst = bound((rate / PER_BURST).max(LEAST_BURST).max(u64::from(mtu) + 18));
        Self { rate, burst, limit: burst + bound((rate / PER_QUEUE).max(LEAST_QUEUE)) }
    }

    fn attributes(self) -> Vec<TcAttribute> {
        let rate = |bytes: u32| [&[0, ETHERNET, 0, 0, 0, 0, 0, 0][..], &bytes.to_ne_bytes()].concat();
        // `struct tc_tbf_qopt`: no peak rate; the burst is told in bytes instead of by the time it takes
        let numbers = [self.limit, 0, 0].map(u32::to_ne_bytes).concat();
        let own = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let parameters = [rate(own), vec![0; 12], numbers].concat();
        let option = |kind, value| TcOption::Other(DefaultNla::new(kind, value));
        let options = vec![
            option(PARAMETERS, parameters),
            option(RATE64, self.rate.to_ne_bytes().to_vec()),
            option(BURST, self.burst.to_ne_bytes().to_vec()),
        ];
        vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options)]
    }
}

/// Puts a bucket at what leaves by a link, in the place of what is there.
async fn put(handle: &Handle, link: u32, bucket: Bucket) -> Result<(), Error> {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes = bucket.attributes();
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// What was tried, and what the kernel needs for it.
fn failed(what: &str, needs: &str) -> impl FnOnce(Error) -> NetworkError {
    link::kernel(format!("{what} (a kernel with {needs} is needed)"))
}

/// Makes a link that packets go through no faster than a bucket says: its index. Repeatable.
pub(super) async fn shape(handle: &Handle, name: &str, bucket: Bucket) -> Result<u32, NetworkError> {
    let what = "limiting what the pod sends (kubernetes.io/egress-bandwidth)";
    link::in_turn(what, async {
        let made = handle.link().add(LinkIfb::new(name).up().build()).execute().await;
        link::done(made).map_err(failed(what, "CONFIG_IFB"))?;
        let index = link::need(handle, name).await?;
        put(handle, index, bucket).await.map_err(failed(what, "CONFIG_NET_SCH_TBF"))?;
        Ok(index)
    })
    .await
}

impl Network {
    /// Holds a sandbox's link to `bandwidth`. The answer is the link what it sends is to be led through, by its guard.
    pub(super) async fn limit(
        &self,
        sandbox: &str,
        bandwidth: Bandwidth,
        mtu: u32,
    ) -> Result<Option<u32>, NetworkError> {
        let handle = &self.inner.handle;
        if let Some(bits) = bandwidth.ingress {
            let what = "limiting what the pod gets (kubernetes.io/ingress-bandwidth)";
            link::in_turn(what, async {
                let index = link::need(handle, &outside(sandbox)).await?;
                put(handle, index, Bucket::of(bits, mtu)).await.map_err(failed(what, "CONFIG_NET_SCH_TBF"))
            })
            .await?;
        }
        match bandwidth.egress {
            Some(bits) => shape(handle, &shaper(sandbox), Bucket::of(bits, mtu)).await.map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    #[test]
    fn a_bucket_fits_its_rate() {
        let of = |bits| Bucket::of(bits, 1500);
        assert_eq!(of(1000), Bucket { rate: 125, burst: 16 * 1024, limit: 48 * 1024 });
        assert_eq!(of(100_000_000), Bucket { rate: 12_500_000, burst: 250_000, limit: 562_500 });
        assert_eq!(of(1_000_000_000_000_000).limit, u32::MAX - 1);
        assert_eq!(Bucket::of(8000, 65535).burst, 65553, "the largest packet fits");
    }

    #[test]
    fn the_kernel_reads_it() {
        let attributes = Bucket::of(8_000_000_000_000, 1500).attributes();
        let mut bytes = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut bytes);
        let options = &bytes[8..];
        assert_eq!(options[..4], [64, 0, 2, 0], "behind the name of its kind");
        assert_eq!(options[4..8], [40, 0, 1, 0], "struct tc_tbf_qopt has 36 bytes");
        assert_eq!(options[8..20], [&[0, 1, 0, 0, 0, 0, 0, 0][..], &u32::MAX.to_ne_bytes()].concat());
        assert_eq!(options[44..56], [&[12, 0, 4, 0][..], &1_000_000_000_000_u64.to_ne_bytes()].concat());
        assert_eq!(options[56..60], [8, 0, 6, 0]);
    }
}
