// client does with govmomi what a backup does, against the lab: it logs in, takes a snapshot, asks
// for changed areas in a loop, downloads the frozen disk twice (from the datastore, and over a
// transfer lease) and removes the snapshot. What it found is one line of JSON on standard output.
//
// After the snapshot it prints a line and waits for one, so that the guest can write meanwhile.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/nfc"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// answersMax bounds the loop over changed areas.
const answersMax = 100000

var extentLine = regexp.MustCompile(`(?m)^(?:RW|RDONLY) \d+ \w+ "([^"/]+)"`)

type area struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
}

type disk struct {
	Key      int32  `json:"key"`
	Capacity int64  `json:"capacity"`
	ChangeID string `json:"change_id"`
	Answers  int    `json:"answers"`
	Areas    []area `json:"areas"`
	Folder   string `json:"folder_file"`
	Lease    string `json:"lease_file"`
}

type work struct {
	client *govmomi.Client
	finder *find.Finder
	vm     *object.VirtualMachine
	into   string
}

func main() {
	address := flag.String("url", "", "https://user:password@host:port/sdk")
	name := flag.String("vm", "", "the VM's name")
	since := flag.String("since", "*", "change id of the VM's first disk; * for what is allocated")
	into := flag.String("into", ".", "folder for the downloaded files")
	flag.Parse()
	if err := run(context.Background(), *address, *name, *since, *into); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address, name, since, into string) error {
	where, err := url.Parse(address)
	if err != nil {
		return err
	}
	client, err := govmomi.NewClient(ctx, where, true)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	defer func() { _ = client.Logout(ctx) }()
	finder := find.NewFinder(client.Client, false)
	datacenter, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return fmt.Errorf("find the datacenter: %w", err)
	}
	finder.SetDatacenter(datacenter)
	vm, err := finder.VirtualMachine(ctx, name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	w := &work{client: client, finder: finder, vm: vm, into: into}
	if err := w.trackChanges(ctx); err != nil {
		return fmt.Errorf("switch change tracking on: %w", err)
	}
	snapshot, err := w.snapshot(ctx)
	if err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	found, err := w.frozen(ctx, snapshot, since)
	if removed := w.remove(ctx, snapshot); err == nil {
		err = removed
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func (w *work) trackChanges(ctx context.Context) error {
	var vm mo.VirtualMachine
	if err := w.vm.Properties(ctx, w.vm.Reference(), []string{"config.changeTrackingEnabled", "snapshot"}, &vm); err != nil {
		return err
	}
	if on := vm.Config.ChangeTrackingEnabled; on != nil && *on {
		return nil
	}
	task, err := w.vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)})
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

func (w *work) snapshot(ctx context.Context) (types.ManagedObjectReference, error) {
	var none types.ManagedObjectReference
	task, err := w.vm.CreateSnapshot(ctx, "referee", "made by a govmomi client", false, false)
	if err != nil {
		return none, err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return none, err
	}
	made, ok := info.Result.(types.ManagedObjectReference)
	if !ok {
		return none, errors.New("the task's result is no reference")
	}
	fmt.Println(`{"snapshot":"` + made.Value + `"}`)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return made, fmt.Errorf("nobody said to go on: %w", err)
	}
	return made, nil
}

func (w *work) remove(ctx context.Context, snapshot types.ManagedObjectReference) error {
	consolidate := true
	task, err := w.vm.RemoveSnapshot(ctx, snapshot.Value, false, &consolidate)
	if err != nil {
		return fmt.Errorf("remove the snapshot: %w", err)
	}
	return task.Wait(ctx)
}

// frozen reads the disks of the snapshot's own configuration.
func (w *work) frozen(ctx context.Context, snapshot types.ManagedObjectReference, since string) ([]disk, error) {
	var moment mo.VirtualMachineSnapshot
	collector := property.DefaultCollector(w.client.Client)
	if err := collector.RetrieveOne(ctx, snapshot, []string{"config"}, &moment); err != nil {
		return nil, fmt.Errorf("read the snapshot: %w", err)
	}
	leased, err := w.lease(ctx, snapshot)
	if err != nil {
		return nil, fmt.Errorf("download over a lease: %w", err)
	}
	var disks []disk
	for _, device := range object.VirtualDeviceList(moment.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		virtual := device.(*types.VirtualDisk)
		backing, ok := virtual.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if !ok {
			return nil, fmt.Errorf("disk %d has a backing %T", virtual.Key, virtual.Backing)
		}
		one := disk{Key: virtual.Key, Capacity: virtual.CapacityInBytes, ChangeID: backing.ChangeId}
		asked := since
		if len(disks) > 0 {
			asked = "*"
		}
		if err := w.changed(ctx, snapshot, asked, &one); err != nil {
			return nil, fmt.Errorf("changed areas of disk %d: %w", virtual.Key, err)
		}
		if one.Folder, err = w.folder(ctx, backing); err != nil {
			return nil, fmt.Errorf("download disk %d from its datastore: %w", virtual.Key, err)
		}
		if len(disks) < len(leased) {
			one.Lease = leased[len(disks)]
		}
		disks = append(disks, one)
	}
	return disks, nil
}

// changed asks until the disk's end.
func (w *work) changed(ctx context.Context, snapshot types.ManagedObjectReference, since string, one *disk) error {
	one.Areas = []area{}
	for offset := int64(0); offset < one.Capacity; {
		answer, err := methods.QueryChangedDiskAreas(ctx, w.client.Client, &types.QueryChangedDiskAreas{
			This: w.vm.Reference(), Snapshot: &snapshot, DeviceKey: one.Key, StartOffset: offset, ChangeId: since,
		})
		if err != nil {
			return err
		}
		found := answer.Returnval
		if found.Length <= 0 || found.StartOffset != offset {
			return fmt.Errorf("no progress at %d: start %d, length %d", offset, found.StartOffset, found.Length)
		}
		for _, each := range found.ChangedArea {
			one.Areas = append(one.Areas, area{each.Start, each.Length})
		}
		offset = found.StartOffset + found.Length
		if one.Answers++; one.Answers > answersMax {
			return errors.New("the list has no end")
		}
	}
	return nil
}

// folder downloads every link of a chain with its extents; the answer is the tip's local descriptor.
func (w *work) folder(ctx context.Context, backing *types.VirtualDiskFlatVer2BackingInfo) (string, error) {
	tip := ""
	for link := backing; link != nil; link = link.Parent {
		var at object.DatastorePath
		if !at.FromString(link.FileName) {
			return "", fmt.Errorf("%q is no datastore path", link.FileName)
		}
		datastore, err := w.finder.Datastore(ctx, at.Datastore)
		if err != nil {
			return "", err
		}
		local, err := w.download(ctx, datastore, at.Path)
		if err != nil {
			return "", err
		}
		if tip == "" {
			tip = local
		}
		text, err := os.ReadFile(local)
		if err != nil {
			return "", err
		}
		for _, extent := range extentLine.FindAllStringSubmatch(string(text), -1) {
			if _, err := w.download(ctx, datastore, path.Join(path.Dir(at.Path), extent[1])); err != nil {
				return "", err
			}
		}
	}
	return tip, nil
}

func (w *work) download(ctx context.Context, datastore *object.Datastore, file string) (string, error) {
	local := filepath.Join(w.into, "folder", filepath.Base(file))
	if err := os.MkdirAll(filepath.Dir(local), 0o755); err != nil {
		return "", err
	}
	if err := datastore.DownloadFile(ctx, file, local, nil); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return local, nil
}

// lease downloads every disk over an ExportSnapshot lease.
func (w *work) lease(ctx context.Context, snapshot types.ManagedObjectReference) ([]string, error) {
	answer, err := methods.ExportSnapshot(ctx, w.client.Client, &types.ExportSnapshot{This: snapshot})
	if err != nil {
		return nil, err
	}
	lease := nfc.NewLease(w.client.Client, answer.Returnval)
	info, err := lease.Wait(ctx, nil)
	if err != nil {
		return nil, err
	}
	updater := lease.StartUpdater(ctx, info)
	defer updater.Done()
	files, err := w.items(ctx, lease, info)
	if err != nil {
		_ = lease.Abort(ctx, nil)
		return nil, err
	}
	return files, lease.Complete(ctx)
}

func (w *work) items(ctx context.Context, lease *nfc.Lease, info *nfc.LeaseInfo) ([]string, error) {
	var files []string
	for number, item := range info.Items {
		if !strings.HasSuffix(item.Path, ".vmdk") {
			continue
		}
		local := filepath.Join(w.into, fmt.Sprintf("lease-%d.vmdk", number))
		if err := lease.DownloadFile(ctx, local, item, soap.Download{}); err != nil {
			return nil, fmt.Errorf("%s: %w", item.Path, err)
		}
		files = append(files, local)
	}
	return files, nil
}
