# The board a node runs on: its sensors as conditions, Events and metrics of the Node; labels it may set itself.
# n1 sees a thermal zone made of files, as this machine may have none; n3 is told the labels of a Raspberry Pi.

thermal=$dir/n1/thermal
mkdir -p "$thermal/thermal_zone0" "$thermal/cooling_device0"
echo cpu-thermal >"$thermal/thermal_zone0/type"
echo 48686 >"$thermal/thermal_zone0/temp"
echo cpufreq-cpu0 >"$thermal/cooling_device0/type"
echo 0 >"$thermal/cooling_device0/cur_state"
on n1 mount --bind "$thermal" /sys/class/thermal
agent_with n1
condition() { [ "$(k get node n1 -o "jsonpath={.status.conditions[?(@.type==\"$1\")].$2}")" = "$3" ]; }
check "a board with a thermal zone tells its temperature" soon condition HighTemperature status False
check "  and whether its processor is slowed down" condition CPUThrottled reason CPUIsNotThrottled
check "  and nothing of a sensor it does not have" condition UnderVoltage status ''
check "Ready is still told" condition Ready status True
echo 81000 >"$thermal/thermal_zone0/temp"
echo 1 >"$thermal/cooling_device0/cur_state"
check "heat is a condition of the Node" soon condition HighTemperature status True
check "  and so is a processor that is slowed down" soon condition CPUThrottled status True
warned() { k get events --field-selector involvedObject.kind=Node,involvedObject.name=n1,reason="$1" -o name | found .; }
check "  Events tell of both" soon eval 'warned TemperatureIsHigh && warned CPUIsThrottled'
metric() { k get --raw /api/v1/nodes/n1/proxy/metrics | found -xF "$1"; }
check "  and so do metrics" metric 'pikelet_board_temperature_celsius{zone="thermal_zone0",type="cpu-thermal"} 81'
check "  of both" metric 'pikelet_board_cpu_throttled 1'
echo 60000 >"$thermal/thermal_zone0/temp"
check "a board that is cool again says so" soon condition HighTemperature reason TemperatureIsNormal
on n1 umount /sys/class/thermal
agent_with n1
check "a board that lost its sensors has no such conditions" soon condition HighTemperature status ''

agent_with n3 --node-labels node.kubernetes.io/instance-type=raspberrypi-4-model-b,pikelet.io/board=Raspberry-Pi-4-Model-B-Rev-1.4,pikelet.io/serial=10000000a1b2c3d4,pikelet.io/soc=bcm2711
labelled() { k get nodes -l node.kubernetes.io/instance-type=raspberrypi-4-model-b,pikelet.io/soc=bcm2711,pikelet.io/serial=10000000a1b2c3d4 -o name | found -x node/n3; }
check "the labels of a board are such that a node may set them" soon labelled
agent_with n3

# in this node's own mounts the memory controller is off
table=$dir/n3/controllers
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  tr ' ' '\n' </sys/fs/cgroup/cgroup.controllers | grep -vx memory | paste -sd ' ' >"$table"
  hide=(mount --bind "$table" /sys/fs/cgroup/cgroup.controllers) show=(umount /sys/fs/cgroup/cgroup.controllers)
else
  hide=(umount -l /sys/fs/cgroup/memory) show=(mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory)
fi
on n3 "${hide[@]}"
agent_with n3
lacks() { k get node n3 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].message}' | found 'WARNING: cgroup memory: not usable: memory limits of pods have no effect'; }
check "a node without the memory controller says so, and what mends it, in its Ready" soon lacks
on n3 "${show[@]}"
agent_with n3
check "  and no more when it is there" soon not lacks
