// Command mklog writes test logs with Tessera's POSIX driver.
//
//	mklog key ORIGIN                      prints a new signing key and its verifier key, a line each
//	mklog grow DIR KEY FROM TO [POLICY]   appends "entry <number> of the test log" for FROM <= number < TO, in this
//	                                      order, and prints the published checkpoint
//
// KEY is a file with a signing key. POLICY is a file of the c2sp.org/tlog-policy format, with URLs: its witnesses must
// cosign before a checkpoint is published; without them mklog waits for ever.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

const batch = 4096

func main() {
	args := os.Args[1:]
	var err error
	switch {
	case len(args) == 2 && args[0] == "key":
		err = printKey(args[1])
	case (len(args) == 5 || len(args) == 6) && args[0] == "grow":
		err = grow(context.Background(), args[1], args[2], args[3], args[4], args[5:])
	default:
		err = errors.New("see the comment at the head of cmd/mklog/main.go")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mklog:", err)
		os.Exit(1)
	}
}

func printKey(origin string) error {
	secret, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s\n", secret, vkey)
	return nil
}

func grow(ctx context.Context, dir, keyFile, fromArg, toArg string, policy []string) error {
	from, err := strconv.Atoi(fromArg)
	if err != nil {
		return err
	}
	to, err := strconv.Atoi(toArg)
	if err != nil {
		return err
	}
	if from >= to {
		return errors.New("nothing to append")
	}
	options, err := appendOptions(keyFile, policy)
	if err != nil {
		return err
	}
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return err
	}
	appender, stop, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return err
	}
	var last tessera.IndexFuture
	for n := from; n < to; n++ {
		last = appender.Add(ctx, tessera.NewEntry(fmt.Appendf(nil, "entry %08d of the test log", n)))
		if (n-from)%batch == batch-1 { // Batches in flight together could change places.
			if _, err := last(); err != nil {
				return err
			}
		}
	}
	awaiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 50*time.Millisecond)
	_, checkpoint, err := awaiter.Await(ctx, last)
	if err != nil {
		return err
	}
	if err := stop(ctx); err != nil {
		return err
	}
	fmt.Print(string(checkpoint))
	return nil
}

func appendOptions(keyFile string, policy []string) (*tessera.AppendOptions, error) {
	secret, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(string(secret))
	if err != nil {
		return nil, err
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithBatching(batch, 100*time.Millisecond).
		WithCheckpointInterval(200 * time.Millisecond).
		WithPushback(1 << 20)
	if len(policy) == 0 {
		return options, nil
	}
	text, err := os.ReadFile(policy[0])
	if err != nil {
		return nil, err
	}
	group, err := tessera.NewWitnessGroupFromPolicy(text)
	if err != nil {
		return nil, err
	}
	return options.WithWitnesses(group, &tessera.WitnessOptions{Timeout: 5 * time.Second}), nil
}
