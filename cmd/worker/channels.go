package main

import (
	"fmt"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/medicalink/postroom/config"
	"github.com/medicalink/postroom/internal/cli"
	"github.com/medicalink/postroom/internal/egress"
	"github.com/medicalink/postroom/internal/notifier"
	"github.com/medicalink/postroom/internal/notifier/chat"
	"github.com/medicalink/postroom/internal/notifier/endpoint"
	"github.com/medicalink/postroom/internal/notifier/sms"
	"github.com/medicalink/postroom/internal/notifier/webhook"
	"github.com/medicalink/postroom/internal/notifier/webpush"
	"github.com/medicalink/postroom/tasks"
)

// newChannels makes the ways out that the settings allow. The caller closes client
// after the last delivery.
func newChannels(cfg config.Config, rdb redis.UniversalClient) (channels map[tasks.Channel]notifier.Channel, client *egress.Client, err error) {
	if client, err = egress.New(egress.Config{}); err != nil {
		return nil, nil, fmt.Errorf("set up the channels: %w", err)
	}
	defer func() {
		if err != nil {
			client.Close()
			err = fmt.Errorf("set up the channels: %w", err)
		}
	}()
	registry := endpoint.NewRegistry(rdb, cfg.Namespace)
	channels = map[tasks.Channel]notifier.Channel{}
	if channels[tasks.ChannelWebhook], err = webhook.New(client, registry); err != nil {
		return nil, nil, err
	}
	if channels[tasks.ChannelChat], err = chat.New(client, registry); err != nil {
		return nil, nil, err
	}
	if cfg.PushKey != nil {
		subscriptions, err := webpush.NewSubscriptions(rdb, cfg.Namespace)
		if err != nil {
			return nil, nil, err
		}
		push := webpush.Config{Key: cfg.PushKey, Subject: cfg.PushSubject}
		if channels[tasks.ChannelPush], err = webpush.New(push, subscriptions, client.HTTP(nil)); err != nil {
			return nil, nil, err
		}
	}
	if cfg.SMS != nil {
		provider, err := sms.NewTwilio(*cfg.SMS, client)
		if err != nil {
			return nil, nil, err
		}
		if channels[tasks.ChannelSMS], err = sms.New(provider); err != nil {
			return nil, nil, err
		}
	}
	return channels, client, nil
}

// pushKey is what worker push-key prints: the only time that the private part is shown.
type pushKey struct {
	Private string `json:"vapid_private_key"`
	Public  string `json:"vapid_public_key"`
}

func newPushKeyCommand(p cli.Process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push-key",
		Short: "Make a key for Web Push",
		Long: `push-key makes a key for Web Push (VAPID, RFC 8292) and prints it. The private part
goes into VAPID_PRIVATE_KEY of the workers, the public part into the pages that ask
browsers to subscribe (applicationServerKey). Nothing is stored.`,
		Args: cobra.NoArgs,
	}
	output := cli.AddOutput(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		key, err := webpush.GenerateKey()
		if err != nil {
			return err
		}
		made := pushKey{Private: string(key.PrivateKey()), Public: key.PublicKey()}
		if *output == cli.JSON {
			return cli.WriteJSON(p.Stdout, made)
		}
		if _, err := fmt.Fprintf(p.Stdout, "VAPID_PRIVATE_KEY=%s\npublic key: %s\n", made.Private, made.Public); err != nil {
			return fmt.Errorf("print the key: %w", err)
		}
		return nil
	}
	return cmd
}
