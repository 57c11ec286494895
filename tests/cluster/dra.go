// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

const (
	driverName = "fake.tandem-rl.dev"
	cdiKind    = driverName + "/device"
)

// fakeDriver hands out devices that exist by name only: a container that was given device-3 has the environment
// variable FAKE_DEVICE_3=<UID of the claim>.
type fakeDriver struct {
	// cdiDirectory is where containerd looks for Container Device Interface files.
	cdiDirectory string
	stop         context.CancelFunc
}

type cdiSpec struct {
	Version string      `json:"cdiVersion"`
	Kind    string      `json:"kind"`
	Devices []cdiDevice `json:"devices"`
}

type cdiDevice struct {
	Name  string   `json:"name"`
	Edits cdiEdits `json:"containerEdits"`
}

type cdiEdits struct {
	Env []string `json:"env"`
}

func (d *fakeDriver) specPath(claim types.UID) string {
	return filepath.Join(d.cdiDirectory, fmt.Sprintf("%s-%s.json", driverName, claim))
}

func (d *fakeDriver) prepare(claim *resourceapi.ResourceClaim) kubeletplugin.PrepareResult {
	spec := cdiSpec{Version: "0.6.0", Kind: cdiKind}
	var devices []kubeletplugin.Device
	for _, allocated := range claim.Status.Allocation.Devices.Results {
		if allocated.Driver != driverName {
			continue
		}
		name := fmt.Sprintf("%s-%s", claim.UID, allocated.Device)
		_, number, _ := strings.Cut(allocated.Device, "-")
		spec.Devices = append(spec.Devices, cdiDevice{
			Name:  name,
			Edits: cdiEdits{Env: []string{fmt.Sprintf("FAKE_DEVICE_%s=%s", number, claim.UID)}},
		})
		devices = append(devices, kubeletplugin.Device{
			Requests:     []string{allocated.Request},
			PoolName:     allocated.Pool,
			DeviceName:   allocated.Device,
			CDIDeviceIDs: []string{cdiKind + "=" + name},
		})
	}
	content, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(d.specPath(claim.UID), content, 0o644)
	}
	return kubeletplugin.PrepareResult{Devices: devices, Err: err}
}

func (d *fakeDriver) PrepareResourceClaims(_ context.Context, claims []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	results := make(map[types.UID]kubeletplugin.PrepareResult, len(claims))
	for _, claim := range claims {
		results[claim.UID] = d.prepare(claim)
	}
	return results, nil
}

func (d *fakeDriver) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	results := make(map[types.UID]error, len(claims))
	for _, claim := range claims {
		err := os.Remove(d.specPath(claim.UID))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		results[claim.UID] = err
	}
	return results, nil
}

func (d *fakeDriver) HandleError(ctx context.Context, err error, message string) {
	utilruntime.HandleErrorWithContext(ctx, err, message)
	if !errors.Is(err, kubeletplugin.ErrRecoverable) {
		d.stop()
	}
}

func runFakeDRADriver() error {
	flags := flag.NewFlagSet("fake-dra-driver", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "file that says how to reach the API server")
	node := flags.String("node-name", "", "name of this node")
	root := flags.String("kubelet-root", "/var/lib/kubelet", "the kubelet's root directory")
	cdiDirectory := flags.String("cdi-dir", "/var/run/cdi", "directory of CDI files that the container runtime reads")
	count := flags.Int("devices", 8, "number of devices to publish")
	_ = flags.Parse(os.Args[1:])

	client, err := connect(*kubeconfig)
	if err != nil {
		return err
	}
	plugins := filepath.Join(*root, "plugins", driverName)
	registry := filepath.Join(*root, "plugins_registry")
	for _, directory := range []string{plugins, registry, *cdiDirectory} {
		if err := os.MkdirAll(directory, 0o750); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	driver := &fakeDriver{cdiDirectory: *cdiDirectory, stop: stop}
	plugin, err := kubeletplugin.Start(ctx, driver,
		kubeletplugin.DriverName(driverName),
		kubeletplugin.KubeClient(client),
		kubeletplugin.NodeName(*node),
		kubeletplugin.RegistrarDirectoryPath(registry),
		kubeletplugin.PluginDataDirectoryPath(plugins),
	)
	if err != nil {
		return err
	}
	defer plugin.Stop()
	devices := make([]resourceapi.Device, *count)
	for i := range devices {
		devices[i].Name = fmt.Sprintf("device-%d", i)
	}
	pool := resourceslice.Pool{Slices: []resourceslice.Slice{{Devices: devices}}}
	resources := resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{*node: pool}}
	if err := plugin.PublishResources(ctx, resources); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
