package mailer

import (
	"net"

	"github.com/wneessen/go-mail/smtp"
)

func smtpNewClient(c net.Conn) (*smtp.Client, error) { return smtp.NewClient(c, "localhost") }
