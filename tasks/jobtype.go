package tasks

// A jobType is one of the types of jobs. The zero value is that of emails.
type jobType uint8

const (
	jobEmail jobType = iota
	jobNotification
	jobDelivery
	jobDigest
)

var jobTypes = [...]struct{ task, noun, family string }{
	jobEmail:        {TypeEmail, "email", "email"},
	jobNotification: {TypeNotification, "notification", "notification"},
	jobDelivery:     {TypeDelivery, "delivery", "notification"},
	jobDigest:       {TypeDigest, "digest", "notification"},
}

// task is the type in asynq.
func (t jobType) task() string { return jobTypes[t].task }

// noun names the type in errors.
func (t jobType) noun() string { return jobTypes[t].noun }

// family is the first part of the names of the queues that hold such jobs.
func (t jobType) family() string { return jobTypes[t].family }
