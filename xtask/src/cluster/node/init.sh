#!/bin/sh
# PID 1 of a node: brings up the networks, containerd, kubelet and kube-proxy. What is special to this
# node is in /run/node, unpacked from its second disk by stage one.
export PATH=/opt/kube:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
. /run/node/env # NODE, NAME, NODES

say() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }

# Runs a command for ever: a part of the node that ends (or is killed by a test) comes back.
keep() {
    log=/var/log/$1.log
    while :; do
        "$@" >>"$log" 2>&1
        say "$1 ended with $?; it is started again"
        sleep 1
    done
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount --make-rshared /
mkdir -p /opt/kube
mount -o ro /dev/vdc /opt/kube
modprobe -a virtio_net overlay bridge br_netfilter veth nf_tables
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
echo "$NAME" >/proc/sys/kernel/hostname
echo "127.0.0.1 localhost $NAME" >/etc/hosts
: >/etc/resolv.conf
say "$(uname -r) is up"

# It takes seconds to start; the networks come up meanwhile.
mkdir -p /etc/cni/net.d /var/lib/kubelet
cp /run/node/cni.conflist /etc/cni/net.d/10-pods.conflist
keep containerd --config /run/node/containerd.toml &

# The first clsact of a machine rewrites the code that sends packets (egress_needed_key, a static key of
# net/core/dev.c), and QEMU's emulation can run a CPU into that. This one is there before there are
# packets, and stays.
modprobe -a dummy sch_ingress
ip link add keep type dummy
tc qdisc add dev keep clsact

# The user network: this is the way to the API server.
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2

# A way in, early, so that a node that hangs can be looked at.
mkdir -p /root/.ssh /etc/dropbear
cp /run/node/authorized_keys /root/.ssh/authorized_keys
chmod 700 /root /root/.ssh
chmod 600 /root/.ssh/authorized_keys
keep dropbear -F -E -R -s &

# The node network: a switch on node 1, a cable from it to every other node.
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link add nodes type bridge forward_delay 0
for device in /sys/class/net/eth[1-9]*; do
    [ -e "$device" ] || continue
    ip link set "${device##*/}" master nodes
    ip link set "${device##*/}" up
done
echo 0 >/proc/sys/net/ipv6/conf/nodes/accept_dad
ip addr add "192.168.99.$NODE/24" dev nodes
ip -6 addr add "fd99::$(printf %x "$NODE")/64" dev nodes nodad
ip link set nodes up
other=1
while [ "$other" -le "$NODES" ]; do
    if [ "$other" != "$NODE" ]; then
        ip route add "10.244.$other.0/24" via "192.168.99.$other"
        hex=$(printf %x "$other")
        ip -6 route add "fd00:10:244:$hex::/64" via "fd99::$hex"
    fi
    other=$((other + 1))
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
# A pod that reaches its neighbour on the same bridge through a service: the answer, too, must pass
# the translation of addresses.
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
echo 1 >/proc/sys/net/bridge/bridge-nf-call-ip6tables
# The user network knows this node by one address only.
nft -f - <<NFT
table ip node {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "eth0" ip saddr 10.244.0.0/16 masquerade
    }
}
NFT

if [ "$NODE" = 1 ]; then
    keep kube-egress :8131 /run/node/egress.crt /run/node/egress.key /run/node/ca.crt &
fi
while ! [ -S /run/containerd/containerd.sock ]; do sleep 0.1; done
say "containerd listens"
# All at the same time, and before the kubelet: a pod whose image is not there yet waits for more than
# that, and there are two CPUs.
importing=
for image in /run/node/images/*.tar; do
    {
        out=$(ctr -n k8s.io images import "$image" 2>&1) || say "failed to import $image: $out"
    } &
    importing="$importing $!"
done
keep kubelet --config=/run/node/kubelet.yaml --kubeconfig=/run/node/kubeconfig \
    --hostname-override="$NAME" --node-ip="192.168.99.$NODE,fd99::$(printf %x "$NODE")" &
wait $importing
rm -rf /run/node/images
say "images are imported"
keep kube-proxy --config=/run/node/kube-proxy.yaml &

# Reap orphans.
while :; do wait; sleep 1; done
