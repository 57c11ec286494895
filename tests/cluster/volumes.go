// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "hostpath.tandem-rl.dev"

// hostPathVolumes makes a directory of this node for each PersistentVolumeClaim of its StorageClass, and deletes it
// with the claim. On one node a directory serves every access mode; ReadWriteOncePod is the scheduler's to enforce.
type hostPathVolumes struct {
	root string
}

func (v *hostPathVolumes) Provision(_ context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	directory := filepath.Join(v.root, options.PVName)
	if err := os.MkdirAll(directory, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	// The kubelet applies no fsGroup to hostPath volumes, so any user may write.
	if err := os.Chmod(directory, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   options.PVC.Spec.AccessModes,
			Capacity:                      options.PVC.Spec.Resources.Requests,
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: directory},
			},
		},
	}
	return volume, controller.ProvisioningFinished, nil
}

func (v *hostPathVolumes) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	directory := volume.Spec.HostPath.Path
	if filepath.Dir(directory) != v.root {
		return fmt.Errorf("volume %s: directory %q is not in %q: not deleted", volume.Name, directory, v.root)
	}
	return os.RemoveAll(directory)
}

func runHostPathVolumes() error {
	flags := flag.NewFlagSet("hostpath-volumes", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "file that says how to reach the API server")
	root := flags.String("root", "", "directory in which the volumes are made")
	_ = flags.Parse(os.Args[1:])

	client, err := connect(*kubeconfig)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	volumes := &hostPathVolumes{root: filepath.Clean(*root)}
	controller.NewProvisionController(ctx, client, provisionerName, volumes, controller.LeaderElection(false)).Run(ctx)
	return nil
}
